#include "engine/xcache/tile_coder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/kernels/kernels.h"
#include "engine/xcache/little_endian.h"

namespace xcache {
namespace {

constexpr int kRotationPiece = 64;
constexpr float kE4m3Max = 448.0f;

const std::array<float, 256>& E4m3Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> t;
    for (int i = 0; i < 256; ++i) {
      t[static_cast<size_t>(i)] = E4m3ToFloat(static_cast<uint8_t>(i));
    }
    return t;
  }();
  return table;
}

float HalfToFloat(uint16_t half, Isa isa) {
  float x;
  GetKernels(isa).from_f16(&half, 1, &x);
  return x;
}

// The least binary16 number with which `largest` is within E4M3's range.
uint16_t MultiplierFor(float largest, Isa isa) {
  const float wanted = std::min(largest / kE4m3Max, 65504.0f);
  uint16_t half;
  GetKernels(isa).to_f16(&wanted, 1, &half);
  if (half == 0 || HalfToFloat(half, isa) < wanted) ++half;
  return half;
}

// Room that any of the tiles needs.
struct Sizes {
  size_t cols = 0;
  size_t codes = 0;
};
Sizes Largest(std::span<const Tile> tiles) {
  Sizes largest;
  for (const Tile& t : tiles) {
    const auto cols = static_cast<size_t>(t.num_cols);
    largest.cols = std::max(largest.cols, cols);
    largest.codes =
        std::max(largest.codes, cols * static_cast<size_t>(t.num_rows));
  }
  return largest;
}

// A fixed stream of bits (Steele et al., "Fast splittable pseudorandom number
// generators", 2014: the finalizer of SplitMix64).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

std::vector<Tile> PerChannelTiles(std::span<const int> widths, int num_tokens,
                                  int group) {
  std::vector<Tile> tiles;
  for (int row = 0; row < num_tokens; row += group) {
    size_t begin = 0;
    while (begin < widths.size()) {
      size_t end = begin + 1;
      while (end < widths.size() && widths[end] == widths[begin]) ++end;
      tiles.push_back({row, std::min(group, num_tokens - row),
                       static_cast<int>(begin), static_cast<int>(end - begin),
                       widths[begin]});
      begin = end;
    }
  }
  return tiles;
}

std::vector<Tile> PerTokenTiles(int num_channels, int num_tokens, int group,
                                int bits) {
  std::vector<Tile> tiles;
  for (int row = 0; row < num_channels; row += group) {
    tiles.push_back(
        {row, std::min(group, num_channels - row), 0, num_tokens, bits});
  }
  return tiles;
}

size_t EncodedTileBytes(const Tile& tile, ScaleFormat format) {
  const size_t scale_bytes = format == ScaleFormat::kF8 ? 1 : 2;
  return 2 * scale_bytes * static_cast<size_t>(tile.num_cols) +
         PackedTileBytes(tile.num_rows, tile.num_cols, tile.bits);
}

size_t MultiplierBytes(ScaleFormat format) {
  return format == ScaleFormat::kF8 ? 4 : 0;
}

size_t EncodedBytes(std::span<const Tile> tiles, ScaleFormat format) {
  size_t bytes = MultiplierBytes(format);
  for (const Tile& tile : tiles) bytes += EncodedTileBytes(tile, format);
  return bytes;
}

TileCoder::TileCoder(ScaleFormat format, bool search, Isa isa)
    : format_(format),
      search_(search),
      isa_(isa),
      kernels_(&GetCodecKernels(isa)) {}

void TileCoder::Encode(std::span<const Tile> tiles, const float* x,
                       int64_t stride, int skip_rows, uint8_t* out) const {
  // Rows of a tile that are skipped, and where the others start.
  const auto skipped = [&](const Tile& t) {
    return std::clamp(skip_rows - t.first_row, 0, t.num_rows);
  };
  const auto start = [&](const Tile& t) {
    return x + (t.first_row + skipped(t)) * stride + t.first_col;
  };

  uint16_t multipliers[2] = {};
  float step_multiplier = 1.0f, centre_multiplier = 1.0f;
  if (format_ == ScaleFormat::kF8) {
    float max_step = 0.0f, max_centre = 0.0f;
    for (const Tile& t : tiles) {
      const int num_values = t.num_rows - skipped(t);
      if (num_values == 0) continue;
      kernels_->tile_ranges({start(t), stride, num_values, t.num_cols, t.bits},
                            &max_step, &max_centre);
    }
    multipliers[0] = MultiplierFor(max_step, isa_);
    multipliers[1] = MultiplierFor(max_centre, isa_);
    step_multiplier = HalfToFloat(multipliers[0], isa_);
    centre_multiplier = HalfToFloat(multipliers[1], isa_);
    StoreLe16(out, multipliers[0]);
    StoreLe16(out + 2, multipliers[1]);
    out += 4;
  }

  const Sizes largest = Largest(tiles);
  std::vector<uint8_t> codes(largest.codes);
  std::vector<uint16_t> scales(2 * largest.cols);
  for (const Tile& t : tiles) {
    const auto cols = static_cast<size_t>(t.num_cols);
    const int skip = skipped(t);
    const size_t skipped_codes = static_cast<size_t>(skip) * cols;
    std::fill_n(codes.begin(), skipped_codes, uint8_t{0});
    std::fill_n(scales.begin(), 2 * cols, uint16_t{0});
    if (skip < t.num_rows) {
      QuantizeTileArgs args;
      args.x = start(t);
      args.x_stride = stride;
      args.num_values = t.num_rows - skip;
      args.num_groups = t.num_cols;
      args.bits = t.bits;
      args.search = search_;
      args.format = format_;
      args.step_multiplier = step_multiplier;
      args.centre_multiplier = centre_multiplier;
      args.codes = codes.data() + skipped_codes;
      args.codes_stride = t.num_cols;
      args.steps = scales.data();
      args.centres = scales.data() + cols;
      kernels_->quantize_tile(args);
    }
    for (size_t i = 0; i < 2 * cols; ++i) {
      if (format_ == ScaleFormat::kF8) {
        *out++ = static_cast<uint8_t>(scales[i]);
      } else {
        StoreLe16(out, scales[i]);
        out += 2;
      }
    }
    kernels_->pack_tile(
        {codes.data(), t.num_cols, t.num_rows, t.num_cols, t.bits, out});
    out += PackedTileBytes(t.num_rows, t.num_cols, t.bits);
  }
}

absl::Status TileCoder::Decode(std::span<const Tile> tiles, const uint8_t* in,
                               float* x, int64_t stride) const {
  float multipliers[2] = {1.0f, 1.0f};
  if (format_ == ScaleFormat::kF8) {
    for (int i = 0; i < 2; ++i) {
      multipliers[i] = HalfToFloat(LoadLe16(in + 2 * i), isa_);
    }
    in += 4;
  }
  const Sizes largest = Largest(tiles);
  std::vector<uint16_t> halves(2 * largest.cols);
  std::vector<float> scales(2 * largest.cols);
  for (const Tile& t : tiles) {
    const auto cols = static_cast<size_t>(t.num_cols);
    float* steps = scales.data();
    float* bases = scales.data() + cols;
    if (format_ == ScaleFormat::kF8) {
      const std::array<float, 256>& table = E4m3Table();
      for (size_t i = 0; i < 2 * cols; ++i) {
        steps[i] = table[in[i]] * multipliers[i < cols ? 0 : 1];
      }
    } else {
      for (size_t i = 0; i < 2 * cols; ++i) halves[i] = LoadLe16(in + 2 * i);
      GetKernels(isa_).from_f16(halves.data(), 2 * t.num_cols, steps);
    }
    in += 2 * cols * scale_bytes();
    // Also catches a NaN. Overflow of what follows is far away: both factors
    // are at most 65504 times 448.
    bool valid = true;
    const float half_levels = 0.5f * static_cast<float>((1 << t.bits) - 1);
    for (size_t i = 0; i < cols; ++i) {
      valid &= steps[i] >= 0.0f && std::isfinite(steps[i]) &&
               std::isfinite(bases[i]);
      bases[i] = bases[i] - steps[i] * half_levels;
    }
    if (!valid) {
      return absl::InvalidArgumentError(
          "payload: expected finite scales and steps of at least 0");
    }
    kernels_->unpack_tile({in, t.num_rows, t.num_cols, t.bits, steps, bases,
                           x + t.first_row * stride + t.first_col, stride});
    in += PackedTileBytes(t.num_rows, t.num_cols, t.bits);
  }
  return absl::OkStatus();
}

Rotation::Rotation(int num_channels, Isa isa) : kernels_(GetCodecKernels(isa)) {
  for (int left = num_channels; left > 0; left -= pieces_.back()) {
    int piece = kRotationPiece;
    while (piece > left) piece /= 2;
    pieces_.push_back(piece);
    for (int i = 0; i < piece; ++i) {
      const float sign = (Mix(signs_.size()) & 1) != 0 ? -1.0f : 1.0f;
      signs_.push_back(sign);
      inverse_.push_back(sign / static_cast<float>(piece));
    }
  }
}

void Rotation::Apply(float* x, int64_t stride, int num_cols) const {
  kernels_.scale_rows(x, stride, static_cast<int>(signs_.size()), num_cols,
                      signs_.data());
  for (int piece : pieces_) {
    kernels_.hadamard(x, stride, piece, num_cols, nullptr);
    x += piece * stride;
  }
}

void Rotation::Invert(float* x, int64_t stride, int num_cols) const {
  const float* factors = inverse_.data();
  for (int piece : pieces_) {
    kernels_.hadamard(x, stride, piece, num_cols, factors);
    x += piece * stride;
    factors += piece;
  }
}

}  // namespace xcache
