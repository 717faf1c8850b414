#include "engine/xcache/payload_plan.h"

#include <algorithm>
#include <utility>

#include "engine/types.h"

namespace xcache {
namespace {

PayloadMatrix FromTiles(GroupAxis axis, int num_channels, bool rotated,
                        std::vector<Tile> tiles, const QuantOptions& quant) {
  PayloadMatrix matrix{axis, num_channels, rotated, std::move(tiles)};
  matrix.bytes = EncodedBytes(matrix.tiles, quant.scales);
  return matrix;
}

}  // namespace

PayloadMatrix PerTokenMatrix(int num_channels, const QuantOptions& quant,
                             int bits, bool rotated) {
  return FromTiles(GroupAxis::kToken, num_channels, rotated,
                   PerTokenTiles(num_channels, kBlockTokens, quant.group, bits),
                   quant);
}

PayloadMatrix PerChannelMatrix(std::span<const int> widths,
                               const QuantOptions& quant) {
  return FromTiles(GroupAxis::kChannel, static_cast<int>(widths.size()), false,
                   PerChannelTiles(widths, kBlockTokens, quant.group), quant);
}

PayloadMatrix HalfMatrix(int num_channels) {
  PayloadMatrix matrix;
  matrix.num_channels = num_channels;
  matrix.bytes = size_t{2} * kBlockTokens * static_cast<size_t>(num_channels);
  return matrix;
}

PayloadPlan PayloadPlan::VariableSize(const CodecShape& shape, size_t most) {
  PayloadPlan plan(shape, QuantOptions{});
  plan.layers_.resize(static_cast<size_t>(shape.num_layers));
  plan.bytes_ = most;
  plan.variable_size_ = true;
  return plan;
}

void PayloadPlan::AddLayer(std::initializer_list<PayloadMatrix> parts,
                           Prediction prediction) {
  Layer layer;
  layer.at = bytes_;
  layer.prediction = prediction;
  if (prediction == Prediction::kResidual || prediction == Prediction::kFit) {
    layer.scales_at = bytes_;
    bytes_ += kBlockTokens;
  }
  for (const PayloadMatrix& matrix : parts) {
    const auto known = std::find(matrices_.begin(), matrices_.end(), matrix);
    layer.parts.push_back(
        {static_cast<size_t>(known - matrices_.begin()), bytes_});
    if (known == matrices_.end()) matrices_.push_back(matrix);
    bytes_ += matrix.bytes;
  }
  layers_.push_back(std::move(layer));
}

}  // namespace xcache
