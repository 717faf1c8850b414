#include "engine/xcache/independent_layers.h"

#include <utility>

#include "engine/base/status_macros.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/projection.h"

namespace xcache {

IndependentLayers::IndependentLayers(CodecSpec spec, PayloadPlan plan, Isa isa)
    : Codec(std::move(spec), std::move(plan)),
      kernels_(GetKernels(isa)),
      all_finite_(GetCodecKernels(isa).all_finite),
      coders_(CodersOf(this->plan(), isa)) {}

absl::Status IndependentLayers::SealLayers(
    LayerRange range, const std::function<LayerRows(int layer)>& rows,
    BlockInfo block, std::span<uint8_t> payload) const {
  XC_RETURN_IF_ERROR(CheckPayloadSize(plan(), payload.size()));
  Buffers buffers;
  for (int layer = range.begin; layer < range.end; ++layer) {
    const LayerRows in = rows(layer);
    XC_RETURN_IF_ERROR(CheckRows(live_rows(), plan().shape(), in,
                                 block.first_row, layer, all_finite_));
    XC_RETURN_IF_ERROR(
        SealLayer(layer, in, block.first_row, buffers, payload.data()));
  }
  return absl::OkStatus();
}

absl::Status IndependentLayers::RematLayers(LayerRange range,
                                            std::span<const uint8_t> payload,
                                            BlockInfo block,
                                            const RematSink& sink) const {
  XC_RETURN_IF_ERROR(CheckPayloadSize(plan(), payload.size()));
  Buffers buffers;
  for (int layer = range.begin; layer < range.end; ++layer) {
    if (!range.has(layer)) continue;
    XC_ASSIGN_OR_RETURN(
        const RematRows out,
        RematLayer(layer, payload.data(), block.first_row, buffers));
    sink(layer, out);
  }
  return absl::OkStatus();
}

void IndependentLayers::Encode(int layer, size_t part, const float* rows,
                               int first_row, uint8_t* payload) const {
  const PayloadPlan::Part& at = plan().part(layer, part);
  coders_[at.matrix].Encode(rows, first_row, payload + at.at);
}

absl::Status IndependentLayers::Decode(int layer, size_t part,
                                       const uint8_t* payload,
                                       std::vector<float>& rows) const {
  const PayloadPlan::Part& at = plan().part(layer, part);
  const PayloadMatrix& matrix = plan().matrices()[at.matrix];
  rows.resize(kBlockTokens * static_cast<size_t>(matrix.num_channels));
  return coders_[at.matrix].Decode(payload + at.at, rows.data());
}

float* IndependentLayers::Project(const float* rows, const PackedFloat& b,
                                  int first_row,
                                  std::vector<float>& out) const {
  out.resize(kBlockTokens * static_cast<size_t>(b.n()));
  ProjectRows(kernels_, rows, b, first_row, kBlockTokens, out.data());
  return out.data();
}

}  // namespace xcache
