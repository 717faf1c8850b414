#include "engine/xcache/block_coder.h"

#include <vector>

#include "engine/base/status_macros.h"
#include "engine/types.h"

namespace xcache {

BlockCoder::BlockCoder(const PayloadMatrix& matrix, const QuantOptions& quant,
                       Isa isa)
    : matrix_(matrix),
      kernels_(&GetCodecKernels(isa)),
      coder_(quant.scales, quant.search, isa) {
  if (matrix_.rotated) rotation_.emplace(matrix_.num_channels, isa);
}

void BlockCoder::Encode(const float* rows, int first_row, uint8_t* out) const {
  const int channels = matrix_.num_channels;
  if (matrix_.axis == GroupAxis::kChannel) {
    coder_.Encode(matrix_.tiles, rows, channels, first_row, out);
    return;
  }
  // [channels, 64]; the sinks' columns stay zero, and so do their codes.
  std::vector<float> columns(static_cast<size_t>(channels) * kBlockTokens);
  kernels_->transpose(rows + int64_t{first_row} * channels, channels,
                      kBlockTokens - first_row, channels,
                      columns.data() + first_row, kBlockTokens);
  if (rotation_) rotation_->Apply(columns.data(), kBlockTokens, kBlockTokens);
  coder_.Encode(matrix_.tiles, columns.data(), kBlockTokens, 0, out);
}

absl::Status BlockCoder::Decode(const uint8_t* in, float* rows) const {
  const int channels = matrix_.num_channels;
  if (matrix_.axis == GroupAxis::kChannel) {
    return coder_.Decode(matrix_.tiles, in, rows, channels);
  }
  // Kept: this is called for each layer of each block of a conversation.
  thread_local std::vector<float> columns;
  columns.resize(static_cast<size_t>(channels) * kBlockTokens);
  XC_RETURN_IF_ERROR(
      coder_.Decode(matrix_.tiles, in, columns.data(), kBlockTokens));
  if (rotation_) rotation_->Invert(columns.data(), kBlockTokens, kBlockTokens);
  kernels_->transpose(columns.data(), kBlockTokens, channels, kBlockTokens,
                      rows, channels);
  return absl::OkStatus();
}

std::vector<BlockCoder> CodersOf(const PayloadPlan& plan, Isa isa) {
  std::vector<BlockCoder> coders;
  for (const PayloadMatrix& matrix : plan.matrices()) {
    coders.emplace_back(matrix, plan.quant(), isa);
  }
  return coders;
}

}  // namespace xcache
