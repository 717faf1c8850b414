// Scalar reference of int_matmul.h: the oracle of the tests.
#include <algorithm>
#include <cmath>

#include "engine/kernels/codec_kernels.h"

namespace xcache {
namespace {

// A row of A times a column of B, modulo 2^32.
template <typename Int>
uint32_t Sum(const Int* a, const Int* b, int num_steps) {
  constexpr int kPerStep = 4 / sizeof(Int);
  uint32_t sum = 0;
  for (int step = 0; step < num_steps; ++step) {
    for (int i = 0; i < kPerStep; ++i) {
      sum += static_cast<uint32_t>(int32_t{a[i]} * b[i]);
    }
    a += kPerStep;
    b += kPerStep * kIntPanelCols;
  }
  return sum;
}

void IntMatmul(const IntMatmulArgs& args, int first, int last) {
  const IntMatrix& b = args.b;
  const int steps = NumSteps(b);
  for (int c = first * kIntPanelCols; c < last * kIntPanelCols && c < b.n;
       ++c) {
    const uint8_t* column =
        b.data + (int64_t{c / kIntPanelCols} * steps * kIntPanelCols +
                  c % kIntPanelCols) *
                     4;
    for (int row = 0; row < args.num_rows; ++row) {
      const uint8_t* a =
          static_cast<const uint8_t*>(args.a) + row * args.a_stride;
      const uint32_t sum =
          b.type == IntType::kI16
              ? Sum(reinterpret_cast<const int16_t*>(a),
                    reinterpret_cast<const int16_t*>(column), steps)
              : Sum(reinterpret_cast<const int8_t*>(a),
                    reinterpret_cast<const int8_t*>(column), steps);
      const float value = static_cast<float>(static_cast<int32_t>(sum)) *
                          args.row_scales[row] * args.col_scales[c];
      float& out = args.out[row * args.out_stride + c];
      out = args.epilogue == Epilogue::kAdd ? out + value : value;
    }
  }
}

float RoundRow(const RoundRowArgs& args) {
  const auto at = [&](int i) {
    const float x =
        args.values[i] - (args.less == nullptr ? 0.0f : args.less[i]);
    return args.scales == nullptr ? x : x * args.scales[i];
  };
  float largest = 0.0f;
  for (int i = 0; i < args.n && largest < kMostRounded; ++i) {
    const float size = std::abs(at(i));
    largest = size < kMostRounded ? std::max(largest, size) : kMostRounded;
  }
  const bool bounded = largest > kLeastRounded && largest < kMostRounded;
  const float scale = bounded ? args.most / largest : 0.0f;
  for (int i = 0; i < args.n; ++i) {
    const auto value = bounded
                           ? static_cast<int16_t>(std::nearbyint(at(i) * scale))
                           : int16_t{0};
    if (args.type == IntType::kI16) {
      static_cast<int16_t*>(args.out)[i] = value;
    } else {
      static_cast<int8_t*>(args.out)[i] = static_cast<int8_t>(value);
    }
  }
  return bounded ? largest / args.most : 0.0f;
}

}  // namespace

void AddIntMatmulRef(CodecKernels* table) {
  table->int_matmul = IntMatmul;
  table->round_row = RoundRow;
}

}  // namespace xcache
