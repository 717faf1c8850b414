// A codec whose layers stand for themselves: what it encodes and decodes is one
// layer; ranges of layers, checks and coders are here. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_INDEPENDENT_LAYERS_H_
#define XCACHE_ENGINE_XCACHE_INDEPENDENT_LAYERS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/isa.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/codec.h"

namespace xcache {

class IndependentLayers : public Codec {
 public:
  IndependentLayers(CodecSpec spec, PayloadPlan plan, Isa isa);

  bool layers_independent() const final { return true; }
  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          BlockInfo block,
                          std::span<uint8_t> payload) const final;
  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           BlockInfo block, const RematSink& sink) const final;

 protected:
  // Room for rows, kept from one layer to the next.
  struct Buffers {
    std::vector<float> latent, k, v;
    std::vector<uint16_t> half;
  };

  // One layer, whose rows are finite where live_rows() asks for X or for K and
  // V before RoPE.
  virtual absl::Status SealLayer(int layer, const LayerRows& rows,
                                 int first_row, Buffers& buffers,
                                 uint8_t* payload) const = 0;
  // What is returned points into `buffers`.
  virtual absl::StatusOr<RematRows> RematLayer(int layer,
                                               const uint8_t* payload,
                                               int first_row,
                                               Buffers& buffers) const = 0;

  // A layer's part, from and to `rows` [64, channels].
  void Encode(int layer, size_t part, const float* rows, int first_row,
              uint8_t* payload) const;
  absl::Status Decode(int layer, size_t part, const uint8_t* payload,
                      std::vector<float>& rows) const;
  // Rows [first_row, 64) of out [64, b.n()] = rows [64, b.k()] b; out's.
  float* Project(const float* rows, const PackedFloat& b, int first_row,
                 std::vector<float>& out) const;

 private:
  const Kernels& kernels_;
  const AllFiniteFn all_finite_;
  const std::vector<BlockCoder> coders_;  // of plan().matrices()
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_INDEPENDENT_LAYERS_H_
