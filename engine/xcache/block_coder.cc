#include "engine/xcache/block_coder.h"

#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/types.h"

namespace xcache {

BlockCoder::BlockCoder(int num_channels, std::vector<Tile> tiles,
                       const QuantOptions& quant, Isa isa)
    : num_channels_(num_channels),
      kernels_(&GetCodecKernels(isa)),
      coder_(quant.scales, quant.search, isa),
      tiles_(std::move(tiles)),
      bytes_(coder_.Bytes(tiles_)) {}

BlockCoder BlockCoder::PerToken(int num_channels, const QuantOptions& quant,
                                int bits, bool rotate, Isa isa) {
  BlockCoder coder(num_channels,
                   PerTokenTiles(num_channels, kBlockTokens, quant.group, bits),
                   quant, isa);
  coder.per_token_ = true;
  if (rotate) coder.rotation_.emplace(num_channels, isa);
  return coder;
}

BlockCoder BlockCoder::PerChannel(std::span<const int> widths,
                                  const QuantOptions& quant, Isa isa) {
  return BlockCoder(static_cast<int>(widths.size()),
                    PerChannelTiles(widths, kBlockTokens, quant.group), quant,
                    isa);
}

BlockCoder BlockCoder::PerChannel(int num_channels, const QuantOptions& quant,
                                  int bits, Isa isa) {
  return PerChannel(std::vector<int>(static_cast<size_t>(num_channels), bits),
                    quant, isa);
}

void BlockCoder::Encode(const float* rows, int first_row, uint8_t* out) const {
  if (!per_token_) {
    coder_.Encode(tiles_, rows, num_channels_, first_row, out);
    return;
  }
  const auto n = static_cast<size_t>(num_channels_);
  // [num_channels, 64]; the sinks' columns stay zero, and so do their codes.
  std::vector<float> columns(n * kBlockTokens);
  kernels_->transpose(rows + int64_t{first_row} * num_channels_, num_channels_,
                      kBlockTokens - first_row, num_channels_,
                      columns.data() + first_row, kBlockTokens);
  if (rotation_) rotation_->Apply(columns.data(), kBlockTokens, kBlockTokens);
  coder_.Encode(tiles_, columns.data(), kBlockTokens, 0, out);
}

absl::Status BlockCoder::Decode(const uint8_t* in, float* rows) const {
  if (!per_token_) return coder_.Decode(tiles_, in, rows, num_channels_);
  // Kept: this is called for each layer of each block of a conversation.
  thread_local std::vector<float> columns;
  columns.resize(static_cast<size_t>(num_channels_) * kBlockTokens);
  XC_RETURN_IF_ERROR(coder_.Decode(tiles_, in, columns.data(), kBlockTokens));
  if (rotation_) rotation_->Invert(columns.data(), kBlockTokens, kBlockTokens);
  kernels_->transpose(columns.data(), kBlockTokens, num_channels_, kBlockTokens,
                      rows, num_channels_);
  return absl::OkStatus();
}

}  // namespace xcache
