// The products of a layer alone, by every way that weights are held: BF16 by
// the vendor's product, blocks of several types by the kernel that reads them
// and in two steps, for one row, a few and a full tile.
#ifndef XCACHE_TESTS_BENCH_GPU_WEIGHT_PRODUCTS_H_
#define XCACHE_TESTS_BENCH_GPU_WEIGHT_PRODUCTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "engine/device/ops.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"

namespace xcache::bench {

// A row for each matrix, number of rows and way: "ms" of one product, and the
// bytes of weights that it stands for in a second; or why it was "skipped".
// Weights are zeros. They lie in memory many times over, so that none is read
// from a cache. `repeat`: timed runs after one that is not; the median counts.
absl::StatusOr<std::vector<nlohmann::ordered_json>> MeasureWeightProducts(
    const HyperParams& model, cuda::DeviceOps& ops, int repeat);

}  // namespace xcache::bench

#endif  // XCACHE_TESTS_BENCH_GPU_WEIGHT_PRODUCTS_H_
