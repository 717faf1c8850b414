// Bodies of the kernels that seal: rotation, the search for each group's grid,
// and packing. The same bytes as the CPU's codecs write, given the same rows:
// no FMA, and every sum over a group's values in order, one thread a group (the
// search: engine/kernels/quantize_search.h).
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_QUANTIZE_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_QUANTIZE_H_

#include <cstdint>

#include "engine/device/kernels/dequantize.h"
#include "engine/device/kernels/math.h"
#include "engine/device/kernels/packed_tile.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
#include "engine/kernels/quantize_search.h"
#include "engine/types.h"

namespace xcache::cuda {

// Most rows of a tile.
inline constexpr int kMaxTileRows = 128;

// x / 2^exponents are exact: powers of two as floats.
XC_HOST_DEVICE inline float PowerOfTwo(int exponent) {
  return FloatOf(static_cast<uint32_t>(exponent + 127) << 23);
}

// The nearest number with `mantissa` bits after the point, half to even, the
// smallest normal exponent `min_exponent`, at most `max`. NaN gives 0.
XC_HOST_DEVICE inline float RoundToFormat(float x, int mantissa,
                                          int min_exponent, float max) {
  const float magnitude = FloatOf(BitsOf(x) & 0x7fffffffu);
  if (!(magnitude > 0.0f)) return 0.0f;
  float rounded;
  if (magnitude < PowerOfTwo(min_exponent)) {
    // A sum whose last place is the format's smallest number rounds to it.
    const float shift = PowerOfTwo(min_exponent - mantissa + 23);
    rounded = (magnitude + shift) - shift;
  } else {
    const int dropped = 23 - mantissa;
    uint32_t bits = BitsOf(magnitude);
    bits += (1u << (dropped - 1)) - 1 + ((bits >> dropped) & 1u);
    rounded = FloatOf(bits & ~((1u << dropped) - 1));
  }
  rounded = rounded < max ? rounded : max;
  return x < 0.0f ? -rounded : rounded;
}

// The bits of a value that RoundToFormat gave, `bytes` of them.
XC_HOST_DEVICE inline uint16_t FormatBits(float x, int mantissa,
                                          int min_exponent, int bytes) {
  const float magnitude = FloatOf(BitsOf(x) & 0x7fffffffu);
  uint32_t bits;
  if (magnitude < PowerOfTwo(min_exponent)) {
    bits =
        static_cast<uint32_t>(magnitude * PowerOfTwo(mantissa - min_exponent));
  } else {
    bits = (BitsOf(magnitude) >> (23 - mantissa)) -
           (static_cast<uint32_t>(126 + min_exponent) << mantissa);
  }
  const uint32_t sign = x < 0.0f ? 1u << (8 * bytes - 1) : 0u;
  return static_cast<uint16_t>(sign | bits);
}

// One group being quantized: values x[i * stride].
class GroupQuantizer {
 public:
  XC_HOST_DEVICE GroupQuantizer(const float* x, int64_t stride, int num_values,
                                int bits, bool fp8, float step_multiplier,
                                float centre_multiplier)
      : x_(x),
        stride_(stride),
        n_(num_values),
        fp8_(fp8),
        step_multiplier_(step_multiplier),
        centre_multiplier_(centre_multiplier),
        levels_(static_cast<float>((1 << bits) - 1)) {
    min_ = max_ = x_[0];
    for (int i = 1; i < n_; ++i) {
      const float v = Value(i);
      min_ = v < min_ ? v : min_;
      max_ = max_ < v ? v : max_;
    }
    middle_ = 0.5f * min_ + 0.5f * max_;
  }

  // The largest step and |centre| that the plain range asks for.
  XC_HOST_DEVICE float range_step() const {
    return (max_ - min_) * (1.0f / levels_);
  }
  XC_HOST_DEVICE float range_centre() const {
    return FloatOf(BitsOf(middle_) & 0x7fffffffu);
  }

  XC_HOST_DEVICE void Quantize(bool search) {
    const float step = range_step();
    Try(step, 0.0f);
    if (!search) return;
    // Values, since device code cannot read a host's array.
    static_assert(sizeof(kShrinks) == 2 * sizeof(float));
    constexpr float kFirst = kShrinks[0], kSecond = kShrinks[1];
    Try(step * kFirst, 0.0f);
    Try(step * kSecond, 0.0f);
    for (int i = 0; i < kRefinements; ++i) Refine();
  }

  XC_HOST_DEVICE int Code(int i) const {
    return static_cast<int>(CodeOn(i, best_.base, best_.inverse));
  }
  XC_HOST_DEVICE uint16_t step_bits() const { return best_.step_bits; }
  XC_HOST_DEVICE uint16_t centre_bits() const { return best_.centre_bits; }

 private:
  struct Grid {
    float step = 0.0f;
    float base = 0.0f;
    float inverse = 0.0f;
    uint16_t step_bits = 0;
    uint16_t centre_bits = 0;
    float error = 0.0f;
    float sum_q = 0.0f, sum_qq = 0.0f, sum_x = 0.0f, sum_xq = 0.0f;
  };

  XC_HOST_DEVICE float Value(int i) const { return x_[i * stride_]; }

  XC_HOST_DEVICE float CodeOn(int i, float base, float inverse) const {
    float t = (Value(i) - base) * inverse;
    t = t > 0.0f ? t : 0.0f;
    t = t < levels_ ? t : levels_;
    return (t + kRoundShift) - kRoundShift;
  }

  XC_HOST_DEVICE void Try(float step, float offset) {
    Grid grid;
    const float centre = middle_ + offset;
    step = step > 0.0f ? step : 0.0f;
    float rounded_centre;
    if (!fp8_) {
      grid.step = RoundToFormat(step, 10, -14, 65504.0f);
      rounded_centre = RoundToFormat(centre, 10, -14, 65504.0f);
      grid.step_bits = FormatBits(grid.step, 10, -14, 2);
      grid.centre_bits = FormatBits(rounded_centre, 10, -14, 2);
    } else {
      const float s =
          RoundToFormat(step * (1.0f / step_multiplier_), 3, -6, 448.0f);
      const float c =
          RoundToFormat(centre * (1.0f / centre_multiplier_), 3, -6, 448.0f);
      grid.step = s * step_multiplier_;
      rounded_centre = c * centre_multiplier_;
      grid.step_bits = FormatBits(s, 3, -6, 1);
      grid.centre_bits = FormatBits(c, 3, -6, 1);
    }
    grid.base = rounded_centre - grid.step * (0.5f * levels_);
    grid.inverse = grid.step > 0.0f ? 1.0f / grid.step : 0.0f;
    for (int i = 0; i < n_; ++i) {
      const float q = CodeOn(i, grid.base, grid.inverse);
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

  XC_HOST_DEVICE void Refine() {
    const auto n = static_cast<float>(n_);
    const Grid& b = best_;
    const float det = n * b.sum_qq - b.sum_q * b.sum_q;
    const float slope = n * b.sum_xq - b.sum_q * b.sum_x;
    const float step = det > 0.0f ? slope / det : b.step;
    const float low = (b.sum_x - step * b.sum_q) * (1.0f / n);
    Try(step, low + step * (0.5f * levels_));
  }

  const float* const x_;
  const int64_t stride_;
  const int n_;
  const bool fp8_;
  const float step_multiplier_, centre_multiplier_;
  const float levels_;
  float min_ = 0.0f, max_ = 0.0f, middle_ = 0.0f;
  Grid best_;
  bool tried_ = false;
};

// The least binary16 number with which `largest` is within E4M3's range.
XC_HOST_DEVICE inline uint16_t MultiplierFor(float largest) {
  float wanted = largest / 448.0f;
  wanted = wanted < 65504.0f ? wanted : 65504.0f;
  uint16_t half = F32ToF16(wanted);
  if (half == 0 || F16ToF32(half) < wanted) ++half;
  return half;
}

// Rows [64, channels] to columns [channels, 64], rotated where asked; tokens
// before first_row become 0. 64 channels of one block. `shared`: kPieceFloats.
template <typename Block>
XC_HOST_DEVICE void TransposePiece(Block& block, const TransposeArgs& args,
                                   int index, int piece, float* shared) {
  const SealSource& source = args.sources[index];
  const int64_t block_floats = int64_t{kBlockTokens} * args.num_channels;
  const float* rows = args.x != nullptr ? args.x + index * block_floats
                                        : source.rows + args.layer_offset;
  float* out = args.out + index * block_floats;
  const int first = piece * kPieceChannels;
  const int left = args.num_channels - first;
  const int channels = left < kPieceChannels ? left : kPieceChannels;
  block.ForThreads([&](int thread) {
    for (int e = thread; e < channels * kBlockTokens; e += kThreads) {
      const int token = e / channels;
      const int c = e - token * channels;
      float value = 0.0f;
      if (token >= source.first_row) {
        value = rows[int64_t{token} * args.num_channels + first + c];
        if (!IsFinite(value)) args.invalid[index] = 1;
      }
      if (args.rotate && RotationNegates(first + c)) value = value * -1.0f;
      shared[c * kPieceStride + token] = value;
    }
  });
  if (args.rotate) {
    for (int half = 1; half < kPieceChannels; half *= 2) {
      HadamardStage(block, half, channels, shared);
    }
  }
  block.ForThreads([&](int thread) {
    for (int e = thread; e < channels * kBlockTokens; e += kThreads) {
      out[int64_t{first} * kBlockTokens + e] =
          shared[e / kBlockTokens * kPieceStride + e % kBlockTokens];
    }
  });
}

// One row of one block.
template <typename Block>
XC_HOST_DEVICE void GatherRow(Block& block, const GatherArgs& args, int row) {
  const int index = row / kBlockTokens;
  const int token = row % kBlockTokens;
  const SealSource& source = args.sources[index];
  const float* from = source.rows + args.layer_offset +
                      static_cast<int64_t>(token) * args.width;
  float* to = args.out + static_cast<int64_t>(row) * args.width;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < args.width; i += kThreads) {
      const float value = token < source.first_row ? 0.0f : from[i];
      if (!IsFinite(value)) args.invalid[index] = 1;
      to[i] = value;
    }
  });
}

// out[row, n] (+)= fma over k in order of x[row, k] w[n, k]: the CPU's bits.
// Eight rows and kThreads columns of one block. `shared`: 8 * kProductDepth
// floats.
inline constexpr int kProductRows = 8;
inline constexpr int kProductDepth = 128;
template <typename Block>
XC_HOST_DEVICE void ExactProductPart(Block& block, const ExactProductArgs& args,
                                     int index, int part, int row_part,
                                     float* shared) {
  const SealSource& source = args.sources[index];
  const float* rows = args.x != nullptr
                          ? args.x + int64_t{index} * kBlockTokens * args.depth
                          : source.rows + args.layer_offset;
  const int first_row = row_part * kProductRows;
  float* out = args.out + int64_t{index} * kBlockTokens * args.width;
  struct Sums {
    float of[kProductRows];
  };
  typename Block::template PerThread<Sums> sums;
  block.ForThreads([&](int thread) {
    XC_UNROLL
    for (int r = 0; r < kProductRows; ++r) sums(thread).of[r] = 0.0f;
  });
  for (int first = 0; first < args.depth; first += kProductDepth) {
    const int left = args.depth - first;
    const int depth = left < kProductDepth ? left : kProductDepth;
    block.ForThreads([&](int thread) {
      for (int e = thread; e < kProductRows * depth; e += kThreads) {
        const int r = e / depth;
        const int row = first_row + r;
        float value = 0.0f;
        if (row >= source.first_row) {
          value = rows[int64_t{row} * args.depth + first + e - r * depth];
          if (!IsFinite(value)) args.invalid[index] = 1;
        }
        shared[r * kProductDepth + e - r * depth] = value;
      }
    });
    block.ForThreads([&](int thread) {
      const int n = part * kThreads + thread;
      if (n >= args.width) return;
      const auto multiply = [&](int i, float weight) {
        XC_UNROLL
        for (int r = 0; r < kProductRows; ++r) {
          sums(thread).of[r] =
              Fma(shared[r * kProductDepth + i], weight, sums(thread).of[r]);
        }
      };
      if (args.w != nullptr) {
        const float* w = args.w + int64_t{n} * args.depth + first;
        for (int i = 0; i < depth; ++i) multiply(i, w[i]);
        return;
      }
      const int64_t stride = args.transposed ? args.width : 1;
      const uint16_t* w = args.w_f16 +
                          (args.transposed ? n : int64_t{n} * args.depth) +
                          first * stride;
      for (int i = 0; i < depth; ++i) multiply(i, F16ToF32(w[i * stride]));
    });
  }
  block.ForThreads([&](int thread) {
    const int n = part * kThreads + thread;
    if (n >= args.width) return;
    XC_UNROLL
    for (int r = 0; r < kProductRows; ++r) {
      float& to = out[int64_t{first_row + r} * args.width + n];
      to = args.add ? to + sums(thread).of[r] : sums(thread).of[r];
    }
  });
}

// Rows of a tile that are not read: the sinks', where rows are tokens.
XC_HOST_DEVICE inline int SkippedRows(const QuantizeArgs& args,
                                      const TileUnit& unit, int index) {
  if (!args.rows_are_tokens) return 0;
  const int skip = args.sources[index].first_row - unit.first_row;
  return skip < 0 ? 0 : skip < unit.num_rows ? skip : unit.num_rows;
}

// Largest step and |centre| of the groups of one unit. `shared`: 2 * kThreads.
template <typename Block>
XC_HOST_DEVICE void UnitRanges(Block& block, const QuantizeArgs& args,
                               int index, int unit_index, float* shared) {
  const TileUnit unit = args.units[unit_index];
  const int skip = SkippedRows(args, unit, index);
  const float* x = args.x + index * args.x_block +
                   (unit.first_row + skip) * args.x_stride + unit.first_col;
  block.ForThreads([&](int thread) {
    float step = 0.0f, centre = 0.0f;
    if (thread < unit.num_cols && skip < unit.num_rows) {
      const GroupQuantizer group(x + thread, args.x_stride,
                                 unit.num_rows - skip, unit.bits, true, 1.0f,
                                 1.0f);
      step = group.range_step();
      centre = group.range_centre();
    }
    shared[thread] = step;
    shared[kThreads + thread] = centre;
  });
  for (int width = kThreads / 2; width > 0; width /= 2) {
    block.ForThreads([&](int thread) {
      if (thread >= width) return;
      for (int at = thread; at < 2 * kThreads; at += kThreads) {
        shared[at] =
            shared[at] < shared[at + width] ? shared[at + width] : shared[at];
      }
    });
  }
  float* out = args.ranges + 2 * (int64_t{index} * args.num_units + unit_index);
  block.ForThreads([&](int thread) {
    if (thread == 0) {
      out[0] = shared[0];
      out[1] = shared[kThreads];
    }
  });
}

// Quantizes and packs one unit: at most kThreads columns of a tile. `codes`:
// kMaxTileRows * kThreads bytes of shared memory.
template <typename Block>
XC_HOST_DEVICE void QuantizeUnit(Block& block, const QuantizeArgs& args,
                                 int index, int unit_index, uint8_t* codes) {
  const TileUnit unit = args.units[unit_index];
  const int skip = SkippedRows(args, unit, index);
  const float* x = args.x + index * args.x_block +
                   (unit.first_row + skip) * args.x_stride + unit.first_col;
  uint8_t* matrix = args.sources[index].payload + args.payload_offset;
  uint8_t* tile = matrix + unit.tile_offset;
  const int scale_bytes = args.fp8 ? 1 : 2;
  float step_multiplier = 1.0f, centre_multiplier = 1.0f;
  uint16_t multipliers[2] = {0, 0};
  if (args.fp8) {
    // Every block finds the maxima anew: a few hundred numbers.
    float max_step = 0.0f, max_centre = 0.0f;
    const float* ranges = args.ranges + 2 * int64_t{index} * args.num_units;
    for (int u = 0; u < args.num_units; ++u) {
      max_step = max_step < ranges[2 * u] ? ranges[2 * u] : max_step;
      max_centre =
          max_centre < ranges[2 * u + 1] ? ranges[2 * u + 1] : max_centre;
    }
    multipliers[0] = MultiplierFor(max_step);
    multipliers[1] = MultiplierFor(max_centre);
    step_multiplier = F16ToF32(multipliers[0]);
    centre_multiplier = F16ToF32(multipliers[1]);
  }
  block.ForThreads([&](int thread) {
    if (args.fp8 && unit_index == 0 && thread < 4) {
      matrix[thread] =
          static_cast<uint8_t>(multipliers[thread / 2] >> (8 * (thread % 2)));
    }
    if (thread >= unit.num_cols) return;
    uint16_t step = 0, centre = 0;
    for (int r = 0; r < skip; ++r) codes[r * kThreads + thread] = 0;
    if (skip < unit.num_rows) {
      GroupQuantizer group(x + thread, args.x_stride, unit.num_rows - skip,
                           unit.bits, args.fp8, step_multiplier,
                           centre_multiplier);
      group.Quantize(args.search);
      for (int r = skip; r < unit.num_rows; ++r) {
        codes[r * kThreads + thread] =
            static_cast<uint8_t>(group.Code(r - skip));
      }
      step = group.step_bits();
      centre = group.centre_bits();
    }
    const int col = unit.col + thread;
    uint8_t* steps = tile + scale_bytes * col;
    uint8_t* centres = tile + scale_bytes * (unit.tile_cols + col);
    for (int b = 0; b < scale_bytes; ++b) {
      steps[b] = static_cast<uint8_t>(step >> (8 * b));
      centres[b] = static_cast<uint8_t>(centre >> (8 * b));
    }
  });
  const TileShape shape{unit.num_rows, unit.tile_cols, unit.bits};
  uint8_t* planes = tile + 2 * scale_bytes * unit.tile_cols;
  const int octets = (unit.num_rows + 7) / 8;
  block.ForThreads([&](int thread) {
    if (thread >= unit.num_cols) return;
    for (int bit = 0; bit < unit.bits; ++bit) {
      for (int octet = 0; octet < octets; ++octet) {
        unsigned byte = 0;
        for (int r = 0; r < 8 && 8 * octet + r < unit.num_rows; ++r) {
          const unsigned code = codes[(8 * octet + r) * kThreads + thread];
          byte |= ((code >> bit) & 1u) << r;
        }
        planes[bit * PlaneBytes(shape) + int64_t{octet} * unit.tile_cols +
               unit.col + thread] = static_cast<uint8_t>(byte);
      }
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_QUANTIZE_H_
