#include "engine/xcache/token_coder.h"

#include <vector>

#include "engine/base/status_macros.h"
#include "engine/types.h"

namespace xcache {

TokenCoder::TokenCoder(int num_channels, const QuantOptions& quant, bool rotate,
                       Isa isa)
    : num_channels_(num_channels),
      kernels_(&GetCodecKernels(isa)),
      coder_(PerTokenTiles(num_channels, kBlockTokens, quant.group, quant.bits),
             quant.scales, quant.search, isa) {
  if (rotate) rotation_.emplace(num_channels, isa);
}

void TokenCoder::Encode(const float* rows, int first_row, uint8_t* out) const {
  const auto n = static_cast<size_t>(num_channels_);
  // [num_channels, 64]; the sinks' columns stay zero, and so do their codes.
  std::vector<float> columns(n * kBlockTokens);
  kernels_->transpose(rows + int64_t{first_row} * num_channels_, num_channels_,
                      kBlockTokens - first_row, num_channels_,
                      columns.data() + first_row, kBlockTokens);
  if (rotation_) rotation_->Apply(columns.data(), kBlockTokens, kBlockTokens);
  coder_.Encode(columns.data(), kBlockTokens, 0, out);
}

absl::Status TokenCoder::Decode(const uint8_t* in, float* rows) const {
  std::vector<float> columns(static_cast<size_t>(num_channels_) * kBlockTokens);
  XC_RETURN_IF_ERROR(coder_.Decode(in, columns.data(), kBlockTokens));
  if (rotation_) rotation_->Invert(columns.data(), kBlockTokens, kBlockTokens);
  kernels_->transpose(columns.data(), kBlockTokens, num_channels_, kBlockTokens,
                      rows, num_channels_);
  return absl::OkStatus();
}

}  // namespace xcache
