// Asymmetric uniform quantization of groups: x ~ base + step * code, codes of 1
// to 8 bits, one step and one centre for each group. A tile is a matrix
// [num_values, num_groups] whose *columns* are the groups, so that a vector
// register holds one value of each of 16 groups and no reduction crosses lanes.
// The same bits on every instruction set: there is no FMA here, and all sums
// run over a group's values in order.
#ifndef XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_H_
#define XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_H_

#include <cstdint>

namespace xcache {

// Most values of a group.
inline constexpr int kMaxGroupValues = 256;

// How a group's step and centre are kept. Codes are chosen on the grid of the
// rounded step and centre, not on that of the exact ones.
enum class ScaleFormat {
  kF16,  // IEEE binary16 each
  kF8,   // E4M3 (no infinities, largest 448) each, times a multiplier
};

// A group's grid is base + step * code with base = centre - step * (2^bits - 1)
// / 2. The centre is kept rather than the smallest value because E4M3 has three
// bits of mantissa: near zero, where most centres are, it loses little.
struct QuantizeTileArgs {
  const float* x = nullptr;  // [num_values, num_groups], finite
  int64_t x_stride = 0;      // elements from row to row
  int num_values = 0;        // 1 .. kMaxGroupValues
  int num_groups = 0;
  int bits = 4;  // 1 .. 8
  // Whether to look for the grid of least squared error (else: min to max).
  bool search = true;
  ScaleFormat format = ScaleFormat::kF16;
  // Multipliers of kF8, positive; not read for kF16.
  float step_multiplier = 1.0f;
  float centre_multiplier = 1.0f;

  uint8_t* codes = nullptr;  // [num_values, num_groups]
  int64_t codes_stride = 0;
  // [num_groups] bit patterns: binary16, or E4M3 in the low byte.
  uint16_t* steps = nullptr;
  uint16_t* centres = nullptr;
};
using QuantizeTileFn = void (*)(const QuantizeTileArgs& args);

// Raises *max_step and *max_centre to the largest (max - min) / (2^bits - 1)
// and |max + min| / 2 of the tile's groups.
struct TileRangesArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int num_values = 0;
  int num_groups = 0;
  int bits = 4;
};
using TileRangesFn = void (*)(const TileRangesArgs& args, float* max_step,
                              float* max_centre);

// Whether all n values are finite.
using AllFiniteFn = bool (*)(const float* x, int64_t n);

// A value of E4M3; NaN for 0x7f and 0xff.
float E4m3ToFloat(uint8_t bits);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_H_
