// Scalar reference of the floating-point product: the oracle of the tests.
#include <cmath>
#include <cstring>

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/scalar_math.h"

namespace xcache {
namespace {

float ElementAt(const FloatMatrix& b, int64_t index) {
  if (b.type == FloatType::kF32) {
    float value;
    std::memcpy(&value, b.data + index * 4, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, b.data + index * 2, 2);
  return b.type == FloatType::kF16 ? F16ToF32(half) : Bf16ToF32(half);
}

void FloatMatmul(const FloatMatmulArgs& args, int first, int last) {
  const FloatMatrix& b = args.b;
  for (int panel = first; panel < last; ++panel) {
    const int begin = panel * kFloatPanelCols;
    const int left = b.n - begin;
    const int cols = left < kFloatPanelCols ? left : kFloatPanelCols;
    const int width = (cols + kPanelCols - 1) / kPanelCols * kPanelCols;
    for (int row = 0; row < args.num_rows; ++row) {
      const float* a = args.a + row * args.a_stride;
      float* out = args.out + row * args.out_stride + begin;
      for (int c = 0; c < cols; ++c) {
        float acc = 0.0f;
        for (int k = 0; k < b.k; ++k) {
          const int64_t index = static_cast<int64_t>(begin) * b.k +
                                static_cast<int64_t>(k) * width + c;
          acc = std::fma(a[k], ElementAt(b, index), acc);
        }
        out[c] = args.epilogue == Epilogue::kAdd ? out[c] + acc : acc;
      }
    }
  }
}

}  // namespace

void AddFloatMatmulRef(Kernels* table) {
  table->float_row_tile = 1;
  table->float_matmul = FloatMatmul;
}

}  // namespace xcache
