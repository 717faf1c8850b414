// What the two cross-layer codecs, xquant-cl and xquant-cl-gqa, have in common:
// a page holds how each layer's input differs from what the layers before it
// gave back (XQuant, arXiv 2508.10395, section 3.2). Not for other rooms.
//
// With u the unit rows of layer i, X^ those that came back from layer i - 1, U
// the layer's basis [d, m] with orthonormal columns (or none: U = I) and Q the
// quantizer:
//   P = a X^                     a: a byte a token, see below; P = 0 at layer 0
//   q = Q((u - P) U)
//   X^' = P + q U^T
//   K, V = X^' W_k, X^' W_v
// The loop is closed: what a layer loses is part of what the next one encodes,
// so errors do not add up. X^ is FP32, one block's, never the whole sequence's.
//
// The residual stream x = u rms(x) changes little from layer to layer; its unit
// rows also change in size, since rms(x) grows. So the prediction is scaled per
// token: by rms(x_{i-1}) / rms(x_i) (x=residual: the differences are those of
// the residual stream, in units of this layer's rms), by what fits best, <u,
// X^> / <X^, X^> (x=fit), or not at all (x=unit). Differences stay in units of
// u whichever it is, where all tokens of a block are alike, and errors of `a`
// are in the loop too: a byte is plenty.
#ifndef XCACHE_ENGINE_XCACHE_CROSS_LAYER_H_
#define XCACHE_ENGINE_XCACHE_CROSS_LAYER_H_

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/kernels/packed.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/projection.h"

namespace xcache {

// The first layers hold rows, not differences, at more bits.
struct BaseOptions {
  int layers = 0;  // base_layers=1|2|3|4
  int bits = 0;    // base_bits=2|3|4|8
};
// At least 4 bits unless asked otherwise.
BaseOptions ReadBaseOptions(OptionReader& options, const QuantOptions& quant,
                            int layers);
// Reads the option `x`.
Prediction ReadPrediction(OptionReader& options, bool refined);

// The matrices that a layer is multiplied by.
struct CrossLayerMatrices {
  // Both null where U = I.
  std::optional<PackedFloat> to_latent;    // U [d, m]
  std::optional<PackedFloat> from_latent;  // U^T [m, d]
  KvProjections projections;
};

// `plan` has one part a layer, of m channels.
std::unique_ptr<const Codec> NewCrossLayerCodec(
    CodecSpec spec, PayloadPlan plan, std::vector<CrossLayerMatrices> matrices,
    Isa isa);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_CROSS_LAYER_H_
