#include "tests/bench/gpu/weight_products.h"

#include <algorithm>
#include <string>

#include "engine/base/status_macros.h"
#include "engine/device/kernels/weight_blocks.h"
#include "engine/device/memory.h"
#include "engine/device/weight_product.h"
#include "engine/device/weights.h"
#include "tests/bench/xcache_bench.h"

namespace xcache::bench {
namespace {

using cuda::DeviceMatrix;
using cuda::StreamId;
using cuda::WeightKernel;
using cuda::WeightType;

constexpr int kRows[] = {1, 8, 64};
constexpr GgufType kTypes[] = {GgufType::kQ4_0, GgufType::kQ8_0,
                               GgufType::kQ4_K, GgufType::kQ6_K};

struct Shape {
  const char* name;
  int n, k;
};

// A matrix' bytes as `type` has them, kBf16 too.
int64_t RowBytes(WeightType type, int k) {
  return type == WeightType::kBf16 ? 2 * int64_t{k}
                                   : cuda::QuantizedRowBytes(type, k);
}

class Products {
 public:
  Products(cuda::DeviceOps& ops, int repeat)
      : ops_(ops),
        is_gpu_(ops.info().capability_major > 0),
        repeat_(repeat),
        weights_(ops),
        a_(ops),
        out_(ops) {}

  absl::Status Reserve(const std::vector<Shape>& shapes) {
    size_t a = 0, out = 0, largest = 0;
    for (const Shape& s : shapes) {
      a = std::max(a, static_cast<size_t>(s.k));
      out = std::max(out, static_cast<size_t>(s.n));
      largest = std::max(
          largest, static_cast<size_t>(s.n * RowBytes(WeightType::kBf16, s.k)));
    }
    // More than any cache; the emulation has none.
    const size_t several =
        is_gpu_ ? std::min(size_t{1} << 30, ops_.info().free_bytes / 4) : 0;
    XC_RETURN_IF_ERROR(weights_.Reserve(std::max(largest, several)));
    XC_RETURN_IF_ERROR(a_.Reserve(cuda::kGemmRows * a * sizeof(uint16_t)));
    XC_RETURN_IF_ERROR(out_.Reserve(cuda::kGemmRows * out * sizeof(float)));
    ops_.Clear(StreamId::kCompute, weights_.as<void>(), weights_.bytes());
    ops_.Clear(StreamId::kCompute, a_.as<void>(), a_.bytes());
    return absl::OkStatus();
  }

  // Milliseconds of one product.
  absl::StatusOr<double> Measure(const Shape& shape, WeightType type,
                                 WeightKernel kernel, int rows) {
    const int64_t row_bytes = RowBytes(type, shape.k);
    const auto bytes =
        (static_cast<size_t>(shape.n * row_bytes) + 255) / 256 * 256;
    const size_t copies =
        is_gpu_ ? std::max<size_t>(1, weights_.bytes() / bytes) : 1;
    DeviceMatrix matrix;
    matrix.cols = shape.k;
    matrix.parts.resize(1);
    cuda::DeviceMatrixPart& part = matrix.parts[0];
    part.num_rows = shape.n;
    if (type != WeightType::kBf16) part.quantized = {nullptr, row_bytes, type};
    cuda::WeightProduct product(ops_, kernel);
    const DeviceMatrix* const all[] = {&matrix};
    if (type != WeightType::kBf16) XC_RETURN_IF_ERROR(product.Reserve(all));
    std::vector<double> ms;
    for (int i = 0; i < repeat_ + 1; ++i) {
      const Timer timer;
      for (size_t copy = 0; copy < copies; ++copy) {
        const uint8_t* at = weights_.as<uint8_t>() + copy * bytes;
        if (type == WeightType::kBf16) {
          part.bf16 = reinterpret_cast<const uint16_t*>(at);
        } else {
          part.quantized.blocks = at;
        }
        product.Run(a_.as<uint16_t>(), matrix, out_.as<float>(), shape.n, false,
                    rows);
      }
      ops_.Synchronize(StreamId::kCompute);
      if (i > 0) ms.push_back(timer.ms() / static_cast<double>(copies));
    }
    if (ops_.error() != nullptr) return absl::InternalError(ops_.error());
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2];
  }

 private:
  cuda::DeviceOps& ops_;
  const bool is_gpu_;
  const int repeat_;
  cuda::DeviceMemory weights_, a_, out_;
};

}  // namespace

absl::StatusOr<std::vector<nlohmann::ordered_json>> MeasureWeightProducts(
    const HyperParams& h, cuda::DeviceOps& ops, int repeat) {
  const int q_dim = h.n_heads * h.head_dim;
  const std::vector<Shape> shapes = {{"qkv", q_dim + 2 * h.kv_dim(), h.d_model},
                                     {"o", h.d_model, q_dim},
                                     {"gate_up", 2 * h.d_ff, h.d_model},
                                     {"down", h.d_model, h.d_ff}};
  Products products(ops, repeat);
  XC_RETURN_IF_ERROR(products.Reserve(shapes));
  std::vector<nlohmann::ordered_json> found;
  const auto measure = [&](const Shape& shape, WeightType type,
                           const std::string& weights, WeightKernel kernel,
                           const char* way) -> absl::Status {
    for (int rows : kRows) {
      nlohmann::ordered_json row = {{"what", "weight product"},
                                    {"matrix", shape.name},
                                    {"n", shape.n},
                                    {"k", shape.k},
                                    {"weights", weights},
                                    {"way", way},
                                    {"rows", rows}};
      if (type != WeightType::kBf16 && kernel == WeightKernel::kFused &&
          !ops.info().has_quantized_gemm) {
        row["skipped"] = "the device has no such kernel";
      } else {
        XC_ASSIGN_OR_RETURN(const double ms,
                            products.Measure(shape, type, kernel, rows));
        row["ms"] = ms;
        row["weight_gb_per_s"] =
            static_cast<double>(shape.n * RowBytes(type, shape.k)) / ms / 1e6;
      }
      found.push_back(row);
    }
    return absl::OkStatus();
  };
  for (const Shape& shape : shapes) {
    XC_RETURN_IF_ERROR(measure(shape, WeightType::kBf16, "BF16",
                               WeightKernel::kFused, "vendor"));
    for (GgufType type : kTypes) {
      const GgufTypeInfo info = *InfoOf(type);
      if (shape.k % info.block_elements != 0) continue;
      const WeightType held = cuda::WeightTypeOf(type);
      for (const auto& [kernel, way] :
           {std::pair{WeightKernel::kFused, "fused"},
            {WeightKernel::kTwoStep, "two-step"}}) {
        XC_RETURN_IF_ERROR(
            measure(shape, held, std::string(info.name), kernel, way));
      }
    }
  }
  return found;
}

}  // namespace xcache::bench
