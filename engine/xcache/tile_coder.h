// Matrices as tiles of quantized groups: the part that all quantizing codecs
// share. A latent matrix is [rows, columns] and its groups are runs of rows in
// a column; where scales are per token the matrix is kept transposed. Byte
// layout: PAGE_FORMAT.md. Thread-safe; the same bits on every instruction set.
#ifndef XCACHE_ENGINE_XCACHE_TILE_CODER_H_
#define XCACHE_ENGINE_XCACHE_TILE_CODER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/isa.h"

namespace xcache {

// Rows [first_row, first_row + num_rows) of columns [first_col, first_col +
// num_cols): each of these columns is a group.
struct Tile {
  int first_row = 0;
  int num_rows = 0;
  int first_col = 0;
  int num_cols = 0;
  int bits = 0;

  bool operator==(const Tile&) const = default;
};

// Tiles of a matrix [num_tokens, channels] with scales per channel: groups of
// `group` tokens. `widths` are the channels' bits.
std::vector<Tile> PerChannelTiles(std::span<const int> widths, int num_tokens,
                                  int group);
// Tiles of a matrix [channels, num_tokens] with scales per token: groups of
// `group` channels.
std::vector<Tile> PerTokenTiles(int num_channels, int num_tokens, int group,
                                int bits);

// Bytes of a tile, and of a matrix that is cut into tiles: its multipliers, if
// it has any, and then the tiles.
size_t EncodedTileBytes(const Tile& tile, ScaleFormat format);
size_t MultiplierBytes(ScaleFormat format);
size_t EncodedBytes(std::span<const Tile> tiles, ScaleFormat format);

// Encodes and decodes matrices that are cut into tiles.
class TileCoder {
 public:
  TileCoder(ScaleFormat format, bool search, Isa isa);

  // Bytes of an encoded matrix.
  size_t Bytes(std::span<const Tile> tiles) const {
    return EncodedBytes(tiles, format_);
  }
  // `x` is finite; rows before `skip_rows` are not read, and their codes are 0.
  void Encode(std::span<const Tile> tiles, const float* x, int64_t stride,
              int skip_rows, uint8_t* out) const;
  // Fills every row. INVALID_ARGUMENT: a scale is not finite or is negative.
  absl::Status Decode(std::span<const Tile> tiles, const uint8_t* in, float* x,
                      int64_t stride) const;

 private:
  size_t scale_bytes() const { return format_ == ScaleFormat::kF8 ? 1 : 2; }

  ScaleFormat format_;
  bool search_;
  Isa isa_;
  const CodecKernels* kernels_;
};

// An orthogonal rotation of channels that spreads an outlier over many: random
// signs, then a Hadamard transform in pieces of 64 and, of what is left,
// descending powers of two. The signs are fixed: part of the page format.
class Rotation {
 public:
  Rotation(int num_channels, Isa isa);
  // In place, columns of `x` [num_channels, num_cols].
  void Apply(float* x, int64_t stride, int num_cols) const;
  void Invert(float* x, int64_t stride, int num_cols) const;

 private:
  const CodecKernels& kernels_;
  std::vector<int> pieces_;
  std::vector<float> signs_;
  std::vector<float> inverse_;  // signs over the piece's size
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TILE_CODER_H_
