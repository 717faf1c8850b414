#include "engine/device/weight_product.h"

#include <algorithm>

namespace xcache::cuda {

WeightProduct::WeightProduct(DeviceOps& ops, WeightKernel kernel,
                             int64_t scratch_bytes)
    : ops_(ops),
      kernel_(ops.info().has_quantized_gemm ? kernel : WeightKernel::kTwoStep),
      scratch_bytes_(scratch_bytes),
      scratch_(ops) {}

int WeightProduct::RowsAtATime(int cols) const {
  const int64_t row_bytes = int64_t{cols} * static_cast<int>(sizeof(uint16_t));
  return static_cast<int>(std::max<int64_t>(
      kGemmRows, scratch_bytes_ / row_bytes / kGemmRows * kGemmRows));
}

absl::Status WeightProduct::Reserve(
    std::span<const DeviceMatrix* const> matrices) {
  if (kernel_ == WeightKernel::kFused) return absl::OkStatus();
  size_t bytes = 0;
  for (const DeviceMatrix* matrix : matrices) {
    for (const DeviceMatrixPart& part : matrix->parts) {
      if (part.bf16 != nullptr) continue;
      const int rows = std::min(part.num_rows, RowsAtATime(matrix->cols));
      bytes = std::max(bytes, static_cast<size_t>(rows) *
                                  static_cast<size_t>(matrix->cols) *
                                  sizeof(uint16_t));
    }
  }
  return scratch_.Reserve(bytes);
}

void WeightProduct::Run(const uint16_t* a, const DeviceMatrix& w, float* out,
                        int64_t out_stride, bool add, int num_rows) {
  GemmArgs gemm;
  gemm.a = a;
  gemm.out_stride = out_stride;
  gemm.num_rows = num_rows;
  gemm.k = w.cols;
  gemm.add = add;
  for (const DeviceMatrixPart& part : w.parts) {
    float* to = out + part.first_row;
    if (part.bf16 != nullptr) {
      gemm.w = part.bf16;
      gemm.out = to;
      gemm.n = part.num_rows;
      ops_.Gemm(gemm);
      continue;
    }
    if (kernel_ == WeightKernel::kFused) {
      QuantizedGemmArgs args;
      args.a = a;
      args.w = part.quantized;
      args.out = to;
      args.out_stride = out_stride;
      args.num_rows = num_rows;
      args.n = part.num_rows;
      args.k = w.cols;
      args.add = add;
      ops_.QuantizedGemm(args);
      continue;
    }
    const int run = RowsAtATime(w.cols);
    for (int first = 0; first < part.num_rows; first += run) {
      UnpackArgs unpack;
      unpack.w = part.quantized;
      unpack.w.blocks += first * part.quantized.row_bytes;
      unpack.out = scratch_.as<uint16_t>();
      unpack.num_rows = std::min(run, part.num_rows - first);
      unpack.k = w.cols;
      ops_.Unpack(unpack);
      gemm.w = scratch_.as<uint16_t>();
      gemm.out = to + first;
      gemm.n = unpack.num_rows;
      ops_.Gemm(gemm);
    }
  }
}

}  // namespace xcache::cuda
