// quantize_groups.h with a vector of groups at a time. The includer defines
// kLanes, the width of its registers; GCC's vector types do the rest, so that
// every instruction set shares one text. Everything is internal to the
// includer, since it is compiled with that file's flags.
#ifndef XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_SIMD_H_
#define XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_SIMD_H_

#include <cstring>

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/quantize_groups.h"
#include "engine/kernels/quantize_groups_vector.h"
#include "engine/kernels/quantize_search.h"

namespace xcache {
namespace {

// A format of kMantissa bits after the point and smallest normal exponent
// kMinExponent; the scalar file says how these work.
template <int kMantissa, int kMinExponent, int kBytes>
struct SmallFloat {
  static constexpr float kSmallestNormal =
      static_cast<float>(1.0 / static_cast<double>(1 << -kMinExponent));
  // 2^(kMinExponent - kMantissa + 23): its last place is the smallest number.
  static constexpr float kShift =
      kMinExponent - kMantissa + 23 >= 0
          ? static_cast<float>(1u << (kMinExponent - kMantissa + 23 < 0
                                          ? 0
                                          : kMinExponent - kMantissa + 23))
          : 0.5f;
  static_assert(kMinExponent - kMantissa + 23 >= -1);

  XC_LANES_INLINE static F32 Round(F32 x, float max) {
    const I32 bits = AsInt(x) & 0x7fffffff;
    const F32 magnitude = AsFloat(bits);
    constexpr int kDropped = 23 - kMantissa;
    const I32 odd = (bits >> kDropped) & 1;
    const F32 normal = AsFloat((bits + ((1 << (kDropped - 1)) - 1) + odd) &
                               ~((1 << kDropped) - 1));
    const F32 small = (magnitude + kShift) - kShift;
    F32 rounded = magnitude < kSmallestNormal ? small : normal;
    rounded = rounded < max ? rounded : Set(max);
    rounded = magnitude > 0.0f ? rounded : Set(0.0f);
    return x < 0.0f ? -rounded : rounded;
  }

  XC_LANES_INLINE static I32 Bits(F32 x) {
    const I32 bits = AsInt(x) & 0x7fffffff;
    const F32 magnitude = AsFloat(bits);
    constexpr float kScale =
        static_cast<float>(1u << (kMantissa - kMinExponent));
    const I32 small = __builtin_convertvector(
        magnitude < kSmallestNormal ? magnitude * kScale : Set(0.0f), I32);
    const I32 normal =
        (bits >> (23 - kMantissa)) - ((126 + kMinExponent) << kMantissa);
    const I32 value = magnitude < kSmallestNormal ? small : normal;
    return value | (x < 0.0f ? SetInt(1 << (8 * kBytes - 1)) : SetInt(0));
  }
};
using Half = SmallFloat<10, -14, 2>;
using E4m3 = SmallFloat<3, -6, 1>;

struct Grid {
  F32 step, base, inverse;
  I32 step_bits, centre_bits;
  F32 error, sum_q, sum_qq, sum_x, sum_xq;
};

XC_LANES_INLINE F32 Pick(I32 mask, F32 a, F32 b) { return mask ? a : b; }
XC_LANES_INLINE I32 Pick(I32 mask, I32 a, I32 b) { return mask ? a : b; }

class Groups {
 public:
  XC_LANES_INLINE Groups(const QuantizeTileArgs& args, const float* x,
                         int64_t stride)
      : args_(args),
        x_(x),
        stride_(stride),
        num_values_(args.num_values),
        levels_(static_cast<float>((1 << args.bits) - 1)) {
    min_ = max_ = Load(x_);
    for (int i = 1; i < num_values_; ++i) {
      const F32 v = Load(x_ + i * stride_);
      min_ = v < min_ ? v : min_;
      max_ = max_ < v ? v : max_;
    }
    middle_ = 0.5f * min_ + 0.5f * max_;
  }

  XC_LANES_INLINE void Quantize() {
    const F32 step = (max_ - min_) * (1.0f / levels_);
    best_ = Measure(step, Set(0.0f));
    if (!args_.search) return;
    for (float shrink : kShrinks) Keep(Measure(step * shrink, Set(0.0f)));
    for (int i = 0; i < kRefinements; ++i) Keep(Refined());
  }

  // Writes the codes of the first n lanes.
  XC_LANES_INLINE void Store(int g, int n) const {
    for (int i = 0; i < num_values_; ++i) {
      const F32 q = Code(Load(x_ + i * stride_), best_.base, best_.inverse);
      StoreBytes(__builtin_convertvector(q, I32),
                 args_.codes + i * args_.codes_stride + g, n);
    }
    StoreShorts(best_.step_bits, args_.steps + g, n);
    StoreShorts(best_.centre_bits, args_.centres + g, n);
  }

 private:
  XC_LANES_INLINE F32 Code(F32 x, F32 base, F32 inverse) const {
    F32 t = (x - base) * inverse;
    t = t > 0.0f ? t : Set(0.0f);
    t = t < levels_ ? t : Set(levels_);
    return (t + kRoundShift) - kRoundShift;
  }

  XC_LANES_INLINE Grid Measure(F32 step, F32 offset) const {
    Grid grid;
    const F32 wanted = middle_ + offset;
    step = step > 0.0f ? step : Set(0.0f);
    F32 centre;
    if (args_.format == ScaleFormat::kF16) {
      grid.step = Half::Round(step, 65504.0f);
      centre = Half::Round(wanted, 65504.0f);
      grid.step_bits = Half::Bits(grid.step);
      grid.centre_bits = Half::Bits(centre);
    } else {
      const F32 s = E4m3::Round(step * (1.0f / args_.step_multiplier), 448.0f);
      const F32 c =
          E4m3::Round(wanted * (1.0f / args_.centre_multiplier), 448.0f);
      grid.step = s * args_.step_multiplier;
      centre = c * args_.centre_multiplier;
      grid.step_bits = E4m3::Bits(s);
      grid.centre_bits = E4m3::Bits(c);
    }
    grid.base = centre - grid.step * (0.5f * levels_);
    grid.inverse = grid.step > 0.0f ? 1.0f / grid.step : Set(0.0f);
    grid.error = grid.sum_q = grid.sum_qq = grid.sum_x = grid.sum_xq =
        Set(0.0f);
    for (int i = 0; i < num_values_; ++i) {
      const F32 v = Load(x_ + i * stride_);
      const F32 q = Code(v, grid.base, grid.inverse);
      const F32 x = v - middle_;
      const F32 d = (v - grid.base) - grid.step * q;
      grid.error += d * d;
      grid.sum_q += q;
      grid.sum_qq += q * q;
      grid.sum_x += x;
      grid.sum_xq += x * q;
    }
    return grid;
  }

  XC_LANES_INLINE Grid Refined() const {
    const auto n = static_cast<float>(num_values_);
    const Grid& b = best_;
    const F32 det = n * b.sum_qq - b.sum_q * b.sum_q;
    const F32 slope = n * b.sum_xq - b.sum_q * b.sum_x;
    const F32 step = det > 0.0f ? slope / det : b.step;
    const F32 low = (b.sum_x - step * b.sum_q) * (1.0f / n);
    return Measure(step, low + step * (0.5f * levels_));
  }

  XC_LANES_INLINE void Keep(const Grid& grid) {
    const I32 better = grid.error < best_.error;
    best_.step = Pick(better, grid.step, best_.step);
    best_.base = Pick(better, grid.base, best_.base);
    best_.inverse = Pick(better, grid.inverse, best_.inverse);
    best_.step_bits = Pick(better, grid.step_bits, best_.step_bits);
    best_.centre_bits = Pick(better, grid.centre_bits, best_.centre_bits);
    best_.error = Pick(better, grid.error, best_.error);
    best_.sum_q = Pick(better, grid.sum_q, best_.sum_q);
    best_.sum_qq = Pick(better, grid.sum_qq, best_.sum_qq);
    best_.sum_x = Pick(better, grid.sum_x, best_.sum_x);
    best_.sum_xq = Pick(better, grid.sum_xq, best_.sum_xq);
  }

  const QuantizeTileArgs& args_;
  const float* x_;
  const int64_t stride_;
  const int num_values_;
  const float levels_;
  F32 min_, max_, middle_;
  Grid best_;
};

// Calls fn(x, stride, first group, number of groups) for each kLanes groups;
// fewer at the end are copied to where a whole register can be read.
template <typename Fn>
XC_LANES_INLINE void ForLanes(const float* x, int64_t stride, int num_values,
                              int num_groups, const Fn& fn) {
  int g = 0;
  for (; g + kLanes <= num_groups; g += kLanes) fn(x + g, stride, g, kLanes);
  if (g == num_groups) return;
  alignas(64) float rest[kMaxGroupValues * kLanes] = {};
  const int n = num_groups - g;
  for (int i = 0; i < num_values; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      rest[i * kLanes + l] = x[i * stride + g + (l < n ? l : 0)];
    }
  }
  fn(rest, kLanes, g, n);
}

void QuantizeTile(const QuantizeTileArgs& args) {
  ForLanes(args.x, args.x_stride, args.num_values, args.num_groups,
           [&](const float* x, int64_t stride, int g, int n) {
             Groups groups(args, x, stride);
             groups.Quantize();
             groups.Store(g, n);
           });
}

void TileRanges(const TileRangesArgs& args, float* max_step,
                float* max_centre) {
  const float inverse_levels = 1.0f / static_cast<float>((1 << args.bits) - 1);
  F32 steps = Set(*max_step);
  F32 centres = Set(*max_centre);
  ForLanes(args.x, args.x_stride, args.num_values, args.num_groups,
           [&](const float* x, int64_t stride, int, int) {
             F32 min = Load(x);
             F32 max = min;
             for (int i = 1; i < args.num_values; ++i) {
               const F32 v = Load(x + i * stride);
               min = v < min ? v : min;
               max = max < v ? v : max;
             }
             const F32 step = (max - min) * inverse_levels;
             const F32 centre =
                 AsFloat(AsInt(0.5f * min + 0.5f * max) & 0x7fffffff);
             steps = steps < step ? step : steps;
             centres = centres < centre ? centre : centres;
           });
  for (int l = 0; l < kLanes; ++l) {
    *max_step = *max_step < steps[l] ? steps[l] : *max_step;
    *max_centre = *max_centre < centres[l] ? centres[l] : *max_centre;
  }
}

bool AllFinite(const float* x, int64_t n) {
  I32 bad = SetInt(0);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    bad |= (AsInt(Load(x + i)) & 0x7f800000) == 0x7f800000;
  }
  for (int l = 0; l < kLanes; ++l) {
    if (bad[l] != 0) return false;
  }
  for (; i < n; ++i) {
    if (!(x[i] - x[i] == 0.0f)) return false;
  }
  return true;
}

void SetQuantizeGroups(CodecKernels* table) {
  table->quantize_tile = QuantizeTile;
  table->tile_ranges = TileRanges;
  table->all_finite = AllFinite;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_SIMD_H_
