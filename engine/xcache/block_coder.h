// The rows of a block, [64, channels], quantized with scales per token or per
// channel. Thread-safe.
#ifndef XCACHE_ENGINE_XCACHE_BLOCK_CODER_H_
#define XCACHE_ENGINE_XCACHE_BLOCK_CODER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/quant_options.h"
#include "engine/xcache/tile_coder.h"

namespace xcache {

class BlockCoder {
 public:
  // Groups of channels of a token; the channels rotated first where `rotate`.
  static BlockCoder PerToken(int num_channels, const QuantOptions& quant,
                             int bits, bool rotate, Isa isa);
  // Groups of tokens of a channel, which has `widths[channel]` bits.
  static BlockCoder PerChannel(std::span<const int> widths,
                               const QuantOptions& quant, Isa isa);
  // The same where every channel has `bits`.
  static BlockCoder PerChannel(int num_channels, const QuantOptions& quant,
                               int bits, Isa isa);

  // Bytes of an encoded block.
  size_t bytes() const { return bytes_; }
  // `rows` [64, num_channels], finite; those before `first_row` are not read.
  void Encode(const float* rows, int first_row, uint8_t* out) const;
  // Fills every row. INVALID_ARGUMENT: see TileCoder::Decode.
  absl::Status Decode(const uint8_t* in, float* rows) const;

 private:
  BlockCoder(int num_channels, std::vector<Tile> tiles,
             const QuantOptions& quant, Isa isa);

  int num_channels_;
  const CodecKernels* kernels_;
  TileCoder coder_;
  std::vector<Tile> tiles_;
  size_t bytes_;
  bool per_token_ = false;
  std::optional<Rotation> rotation_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_BLOCK_CODER_H_
