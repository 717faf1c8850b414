// Scalar reference: one group after another. What the vector kernel must
// reproduce bit by bit.
#include <bit>
#include <cmath>

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/quantize_groups.h"
#include "engine/kernels/quantize_search.h"

namespace xcache {
namespace {

// The nearest number with `kMantissa` bits after the point, half to even, the
// smallest normal exponent kMinExponent, at most `kMax`. NaN gives 0.
template <int kMantissa, int kMinExponent>
float RoundToFormat(float x, float max) {
  const float magnitude = std::fabs(x);
  if (!(magnitude > 0.0f)) return 0.0f;
  float rounded;
  if (magnitude < std::ldexp(1.0f, kMinExponent)) {
    // A sum whose last place is the format's smallest number rounds to it.
    const float shift = std::ldexp(1.0f, kMinExponent - kMantissa + 23);
    rounded = (magnitude + shift) - shift;
  } else {
    constexpr int kDropped = 23 - kMantissa;
    uint32_t bits = std::bit_cast<uint32_t>(magnitude);
    bits += (1u << (kDropped - 1)) - 1 + ((bits >> kDropped) & 1u);
    rounded = std::bit_cast<float>(bits & ~((1u << kDropped) - 1));
  }
  rounded = rounded < max ? rounded : max;
  return x < 0.0f ? -rounded : rounded;
}

// The bit pattern of a value that RoundToFormat gave.
template <int kMantissa, int kMinExponent, int kBytes>
uint16_t FormatBits(float x) {
  const float magnitude = std::fabs(x);
  uint32_t bits;
  if (magnitude < std::ldexp(1.0f, kMinExponent)) {
    bits = static_cast<uint32_t>(magnitude *
                                 std::ldexp(1.0f, kMantissa - kMinExponent));
  } else {
    bits = (std::bit_cast<uint32_t>(magnitude) >> (23 - kMantissa)) -
           (static_cast<uint32_t>(126 + kMinExponent) << kMantissa);
  }
  const uint32_t sign = x < 0.0f ? 1u << (8 * kBytes - 1) : 0u;
  return static_cast<uint16_t>(sign | bits);
}

float RoundHalf(float x) { return RoundToFormat<10, -14>(x, 65504.0f); }
float RoundE4m3(float x) { return RoundToFormat<3, -6>(x, 448.0f); }

// One column being quantized.
class Group {
 public:
  Group(const QuantizeTileArgs& args, int g) : args_(args), x_(args.x + g) {
    levels_ = static_cast<float>((1 << args.bits) - 1);
    min_ = max_ = x_[0];
    for (int i = 1; i < args.num_values; ++i) {
      const float v = Value(i);
      min_ = v < min_ ? v : min_;
      max_ = max_ < v ? v : max_;
    }
    middle_ = 0.5f * min_ + 0.5f * max_;
  }

  void Quantize() {
    const float step = (max_ - min_) * (1.0f / levels_);
    Try(step, 0.0f);
    if (args_.search) {
      for (float shrink : kShrinks) Try(step * shrink, 0.0f);
      for (int i = 0; i < kRefinements; ++i) Refine();
    }
  }

  void Store(int g) const {
    for (int i = 0; i < args_.num_values; ++i) {
      args_.codes[i * args_.codes_stride + g] =
          static_cast<uint8_t>(Code(i, best_.base, best_.inverse));
    }
    args_.steps[g] = best_.step_bits;
    args_.centres[g] = best_.centre_bits;
  }

 private:
  struct Grid {
    float step = 0.0f;
    float base = 0.0f;
    float inverse = 0.0f;
    uint16_t step_bits = 0;
    uint16_t centre_bits = 0;
    // Over the group: squared error, and the sums that the least-squares fit of
    // x - middle to the codes needs.
    float error = 0.0f;
    float sum_q = 0.0f, sum_qq = 0.0f, sum_x = 0.0f, sum_xq = 0.0f;
  };

  float Value(int i) const { return x_[i * args_.x_stride]; }

  float Code(int i, float base, float inverse) const {
    float t = (Value(i) - base) * inverse;
    t = t > 0.0f ? t : 0.0f;
    t = t < levels_ ? t : levels_;
    return (t + kRoundShift) - kRoundShift;
  }

  // Measures the grid with this step, and its centre at middle + offset, both
  // rounded; keeps it if it is better.
  void Try(float step, float offset) {
    Grid grid;
    const float centre = middle_ + offset;
    step = step > 0.0f ? step : 0.0f;
    float rounded_centre;
    if (args_.format == ScaleFormat::kF16) {
      grid.step = RoundHalf(step);
      rounded_centre = RoundHalf(centre);
      grid.step_bits = FormatBits<10, -14, 2>(grid.step);
      grid.centre_bits = FormatBits<10, -14, 2>(rounded_centre);
    } else {
      const float s = RoundE4m3(step * (1.0f / args_.step_multiplier));
      const float c = RoundE4m3(centre * (1.0f / args_.centre_multiplier));
      grid.step = s * args_.step_multiplier;
      rounded_centre = c * args_.centre_multiplier;
      grid.step_bits = FormatBits<3, -6, 1>(s);
      grid.centre_bits = FormatBits<3, -6, 1>(c);
    }
    grid.base = rounded_centre - grid.step * (0.5f * levels_);
    grid.inverse = grid.step > 0.0f ? 1.0f / grid.step : 0.0f;
    for (int i = 0; i < args_.num_values; ++i) {
      const float q = Code(i, grid.base, grid.inverse);
      const float x = Value(i) - middle_;
      const float d = (Value(i) - grid.base) - grid.step * q;
      grid.error += d * d;
      grid.sum_q += q;
      grid.sum_qq += q * q;
      grid.sum_x += x;
      grid.sum_xq += x * q;
    }
    if (!tried_ || grid.error < best_.error) best_ = grid;
    tried_ = true;
  }

  // The step and centre of least squared error for the best codes so far.
  void Refine() {
    const auto n = static_cast<float>(args_.num_values);
    const Grid& b = best_;
    const float det = n * b.sum_qq - b.sum_q * b.sum_q;
    const float slope = n * b.sum_xq - b.sum_q * b.sum_x;
    const float step = det > 0.0f ? slope / det : b.step;
    const float low = (b.sum_x - step * b.sum_q) * (1.0f / n);
    Try(step, low + step * (0.5f * levels_));
  }

  const QuantizeTileArgs& args_;
  const float* x_;
  float levels_ = 0.0f;
  float min_ = 0.0f, max_ = 0.0f, middle_ = 0.0f;
  Grid best_;
  bool tried_ = false;
};

void QuantizeTile(const QuantizeTileArgs& args) {
  for (int g = 0; g < args.num_groups; ++g) {
    Group group(args, g);
    group.Quantize();
    group.Store(g);
  }
}

void TileRanges(const TileRangesArgs& args, float* max_step,
                float* max_centre) {
  const float inverse_levels = 1.0f / static_cast<float>((1 << args.bits) - 1);
  for (int g = 0; g < args.num_groups; ++g) {
    float min = args.x[g], max = args.x[g];
    for (int i = 1; i < args.num_values; ++i) {
      const float v = args.x[i * args.x_stride + g];
      min = v < min ? v : min;
      max = max < v ? v : max;
    }
    const float step = (max - min) * inverse_levels;
    const float centre = std::fabs(0.5f * min + 0.5f * max);
    *max_step = *max_step < step ? step : *max_step;
    *max_centre = *max_centre < centre ? centre : *max_centre;
  }
}

bool AllFinite(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return false;
  }
  return true;
}

}  // namespace

float E4m3ToFloat(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float magnitude =
      exponent == 0
          ? std::ldexp(static_cast<float>(mantissa), -9)
          : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

void AddQuantizeGroupsRef(CodecKernels* table) {
  table->quantize_tile = QuantizeTile;
  table->tile_ranges = TileRanges;
  table->all_finite = AllFinite;
}

}  // namespace xcache
