// Products with a model's matrices, however device memory holds them: BF16 by
// the vendor's product, blocks by the kernel that multiplies them as they are,
// or, where the device has none or the caller says so, unpacked to BF16 in a
// scratch buffer first. The latter is the reference; the two differ by the
// order of FP32 sums.
#ifndef XCACHE_ENGINE_DEVICE_WEIGHT_PRODUCT_H_
#define XCACHE_ENGINE_DEVICE_WEIGHT_PRODUCT_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/device/weights.h"

namespace xcache::cuda {

enum class WeightKernel { kFused, kTwoStep };

class WeightProduct {
 public:
  // Most bytes that are unpacked at a time, or 64 rows.
  static constexpr int64_t kScratchBytes = int64_t{64} << 20;

  // `ops` must outlive it. kFused: where the device has that kernel.
  WeightProduct(DeviceOps& ops, WeightKernel kernel,
                int64_t scratch_bytes = kScratchBytes);

  // Room for what is unpacked of these matrices. RESOURCE_EXHAUSTED: there is
  // none.
  absl::Status Reserve(std::span<const DeviceMatrix* const> matrices);

  // out[num_rows, ..] (+)= a[num_rows, w.cols] w^T with FP32 sums, on the
  // compute stream. Buffers as Gemm wants them. REQUIRES: `w` was among the
  // matrices of Reserve, or has no part in blocks.
  void Run(const uint16_t* a, const DeviceMatrix& w, float* out,
           int64_t out_stride, bool add, int num_rows);

  // What multiplies blocks.
  WeightKernel kernel() const { return kernel_; }

 private:
  // The same whatever the number of rows that are multiplied.
  int RowsAtATime(int cols) const;

  DeviceOps& ops_;
  const WeightKernel kernel_;
  const int64_t scratch_bytes_;
  DeviceMemory scratch_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_WEIGHT_PRODUCT_H_
