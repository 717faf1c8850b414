// Products with a model's matrices, however device memory holds them: BF16 by
// the vendor's product, blocks by the kernel that multiplies them as they are,
// or, where the device has none or the caller says so, unpacked to BF16 in a
// scratch buffer first. The latter is the reference; the two differ by the
// order of FP32 sums.
#ifndef XCACHE_ENGINE_CUDA_WEIGHT_PRODUCT_H_
#define XCACHE_ENGINE_CUDA_WEIGHT_PRODUCT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/device_ops.h"
#include "engine/cuda/device_weights.h"

namespace xcache::cuda {

enum class WeightKernel { kFused, kTwoStep };

class WeightProduct {
 public:
  // `ops` must outlive it. kFused: where the device has that kernel.
  WeightProduct(DeviceOps& ops, WeightKernel kernel);

  // Room for what is unpacked of a matrix part of at most `elements` elements,
  // all of it or 64 MiB at a time. RESOURCE_EXHAUSTED: there is none.
  absl::Status Reserve(int64_t elements);

  // out[num_rows, ..] (+)= a[num_rows, w.cols] w^T with FP32 sums, on the
  // compute stream. Buffers as Gemm wants them. REQUIRES: w's parts are within
  // what was reserved.
  void Run(const uint16_t* a, const DeviceMatrix& w, float* out,
           int64_t out_stride, bool add, int num_rows);

  // What multiplies blocks.
  WeightKernel kernel() const { return kernel_; }

 private:
  DeviceOps& ops_;
  const WeightKernel kernel_;
  DeviceMemory scratch_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_WEIGHT_PRODUCT_H_
