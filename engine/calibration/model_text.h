// Text that a model writes by itself: what its conversations look like to it,
// in the languages that it knows best.
#ifndef XCACHE_ENGINE_CALIBRATION_MODEL_TEXT_H_
#define XCACHE_ENGINE_CALIBRATION_MODEL_TEXT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/types.h"

namespace xcache {

// `count` windows of `num_tokens`, sampled from the model's own distribution.
// One half starts with `first`, the other with tokens drawn at random. The same
// for the same seed and engine.
absl::StatusOr<std::vector<std::vector<TokenId>>> WriteWindows(
    Engine& engine, size_t count, size_t num_tokens, TokenId first,
    uint64_t seed, const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_MODEL_TEXT_H_
