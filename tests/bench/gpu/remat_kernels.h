// The kernels of rematerialization alone: a batch of pages that are on the
// device already, all layers, by every way that the codec has.
#ifndef XCACHE_TESTS_BENCH_GPU_REMAT_KERNELS_H_
#define XCACHE_TESTS_BENCH_GPU_REMAT_KERNELS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/ops.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"

namespace xcache::bench {

// "fused" or "two-step".
const char* RematKernelName(cuda::RematKernel kernel);

struct RematKernelsOptions {
  std::string profile_dir;
  int threads = 1;  // of the host, to upload matrices
  int repeat = 1;   // timed runs after one that is not; the median counts
};

// One row for each kernel: "ms" of a batch of kRematBlocks copies of `payload`,
// or why it was "skipped". None where the codec has no kernels.
absl::StatusOr<std::vector<nlohmann::ordered_json>> MeasureRematKernels(
    std::shared_ptr<const Model> model, cuda::DeviceOps& ops,
    const std::string& spec, std::span<const uint8_t> payload,
    const RematKernelsOptions& options);

}  // namespace xcache::bench

#endif  // XCACHE_TESTS_BENCH_GPU_REMAT_KERNELS_H_
