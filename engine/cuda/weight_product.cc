#include "engine/cuda/weight_product.h"

#include <algorithm>

namespace xcache::cuda {
namespace {

// Most elements that are unpacked at a time: 64 MiB as BF16.
constexpr int64_t kScratchElements = int64_t{32} << 20;

}  // namespace

WeightProduct::WeightProduct(DeviceOps& ops, WeightKernel kernel)
    : ops_(ops),
      kernel_(ops.info().has_quantized_gemm ? kernel : WeightKernel::kTwoStep),
      scratch_(ops) {}

absl::Status WeightProduct::Reserve(int64_t elements) {
  if (kernel_ == WeightKernel::kFused || elements == 0) {
    return absl::OkStatus();
  }
  return scratch_.Reserve(
      static_cast<size_t>(std::min(elements, kScratchElements)) *
      sizeof(uint16_t));
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
    // The same pieces whatever the number of rows.
    const int run = static_cast<int>(std::max<int64_t>(
        1, kScratchElements / w.cols / kGemmRows * kGemmRows));
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
