// What a codec's payload holds, layer by layer, as plain data: matrices, where
// they are, the axis of their scales, the widths of their channels, rotation.
// Each codec writes it once, from its spec, the model's shape and its profile;
// the codecs of the CPU and of the device read it, and nothing else says where
// a byte is. The bytes of a matrix: PAGE_FORMAT.md. No values here.
#ifndef XCACHE_ENGINE_XCACHE_PAYLOAD_PLAN_H_
#define XCACHE_ENGINE_XCACHE_PAYLOAD_PLAN_H_

#include <cstddef>
#include <initializer_list>
#include <optional>
#include <span>
#include <vector>

#include "engine/kernels/quantize_groups.h"
#include "engine/xcache/tile_coder.h"

namespace xcache {

// What a codec needs to know of a model's sizes.
struct CodecShape {
  int num_layers = 0;
  int d_model = 0;
  int kv_dim = 0;  // "k"

  bool operator==(const CodecShape&) const = default;
};

struct QuantOptions {
  int bits = 4;                           // bits=2|3|4|8
  int group = 64;                         // group=16|32|64|128, values
  bool search = true;                     // clip=mse|minmax
  ScaleFormat scales = ScaleFormat::kF8;  // scales=fp8|fp16
};

// What a group of values, which has a scale of its own, is a part of.
enum class GroupAxis {
  kToken,    // channels of a token
  kChannel,  // tokens of a channel
  kNone,     // there are no groups: the values themselves, FP16
};

// The rows of a block, [64, num_channels], as they are encoded.
struct PayloadMatrix {
  GroupAxis axis = GroupAxis::kNone;
  int num_channels = 0;
  // Whether the channels of each token are turned by Rotation first.
  bool rotated = false;
  // In the order of their bytes, with their widths; of [64, num_channels], or
  // of its transpose where groups are channels.
  std::vector<Tile> tiles;
  size_t bytes = 0;

  bool operator==(const PayloadMatrix&) const = default;
};

// Groups of channels of a token, `bits` each.
PayloadMatrix PerTokenMatrix(int num_channels, const QuantOptions& quant,
                             int bits, bool rotated);
// Groups of tokens of a channel, which has `widths[channel]` bits.
PayloadMatrix PerChannelMatrix(std::span<const int> widths,
                               const QuantOptions& quant);
// The values themselves.
PayloadMatrix HalfMatrix(int num_channels);

// What a layer of a cross-layer codec makes of what came back of the layers
// before it (cross_layer.h); kNone: it holds rows that stand for themselves.
enum class Prediction { kNone, kUnit, kResidual, kFit };

class PayloadPlan {
 public:
  // A matrix of a layer: which of matrices() it is, and where its bytes begin
  // in the payload.
  struct Part {
    size_t matrix = 0;
    size_t at = 0;
  };
  struct Layer {
    size_t at = 0;
    Prediction prediction = Prediction::kNone;
    // Where the prediction's scales are, a byte a token, if it has any.
    std::optional<size_t> scales_at;
    std::vector<Part> parts;
  };

  PayloadPlan(const CodecShape& shape, const QuantOptions& quant)
      : shape_(shape), quant_(quant) {}
  // Of payloads that differ in size, `most` bytes at most: what they hold is
  // the codec's own business, and nothing is said of layers but how many there
  // are.
  static PayloadPlan VariableSize(const CodecShape& shape, size_t most);
  // Appends a layer: scales, then the parts in order.
  void AddLayer(std::initializer_list<PayloadMatrix> parts,
                Prediction prediction = Prediction::kNone);

  const CodecShape& shape() const { return shape_; }
  // Of every matrix, but for the bits.
  const QuantOptions& quant() const { return quant_; }
  // Those that differ: layers share what is alike.
  const std::vector<PayloadMatrix>& matrices() const { return matrices_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  const Layer& layer(int i) const { return layers_[static_cast<size_t>(i)]; }
  const Part& part(int layer, size_t part) const {
    return this->layer(layer).parts[part];
  }
  // Where a layer begins; they follow each other without gaps, so that of
  // num_layers() it is the payload's size.
  size_t at(int layer) const {
    return layer == num_layers() ? bytes_ : this->layer(layer).at;
  }
  // The most where variable_size().
  size_t bytes() const { return bytes_; }
  bool variable_size() const { return variable_size_; }

 private:
  CodecShape shape_;
  QuantOptions quant_;
  std::vector<PayloadMatrix> matrices_;
  std::vector<Layer> layers_;
  size_t bytes_ = 0;
  bool variable_size_ = false;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_PAYLOAD_PLAN_H_
