// Models of real shapes with made-up weights, from a seed: for speed, where no
// file of such a model is at hand. What they compute means nothing.
#ifndef XCACHE_TESTS_BENCH_GPU_SYNTHETIC_MODEL_H_
#define XCACHE_TESTS_BENCH_GPU_SYNTHETIC_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/xcache/profile.h"

namespace xcache::bench {

// "llama-3.1-8b", "llama-2-7b", and "small" to try the program itself.
std::vector<std::string> SyntheticShapes();

// The model, in memory: Q4_0 blocks of one scale and random codes.
absl::StatusOr<std::shared_ptr<const Model>> MakeSyntheticModel(
    const std::string& shape, uint64_t seed);

// Writes a profile whose basis is the first columns of the identity into `dir`,
// under the name that the engine looks for: a real one takes minutes of SVD for
// such shapes, and speed does not depend on it.
absl::Status WriteSyntheticProfile(const Model& model, ProfileKind kind,
                                   const std::string& dir);

}  // namespace xcache::bench

#endif  // XCACHE_TESTS_BENCH_GPU_SYNTHETIC_MODEL_H_
