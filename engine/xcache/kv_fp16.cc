// Codec kv-fp16: the working set's own FP16 rows, lossless. The baseline of
// every comparison, and what a K/V cache without an X-cache would store.
#include <bit>
#include <cstring>
#include <memory>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/independent_layers.h"

namespace xcache {
namespace {

static_assert(std::endian::native == std::endian::little,
              "payloads are copied as they lie in memory");

// Infinity and NaN have all exponent bits set.
bool AllFinite(const uint16_t* half, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) bad |= (half[i] & 0x7c00u) == 0x7c00u;
  return bad == 0;
}

class KvFp16 final : public IndependentLayers {
 public:
  using IndependentLayers::IndependentLayers;
  unsigned live_rows() const override { return kLiveKvFinal; }
  RematStage remat_stage() const override { return RematStage::kFinal; }

 private:
  absl::Status SealLayer(int layer, const LayerRows& rows, int first_row,
                         Buffers& /*buffers*/,
                         uint8_t* payload) const override {
    const size_t skipped = static_cast<size_t>(first_row) * kv_dim();
    for (size_t part : {kKeys, kValues}) {
      const uint16_t* side = part == kKeys ? rows.k_final : rows.v_final;
      for (int row = first_row; row < kBlockTokens; ++row) {
        if (!AllFinite(side + static_cast<size_t>(row) * kv_dim(), kv_dim())) {
          return NotFinite(part == kKeys ? "K" : "V", layer, row);
        }
      }
      uint8_t* out = payload + plan().part(layer, part).at;
      std::memset(out, 0, skipped * sizeof(uint16_t));
      std::memcpy(out + skipped * sizeof(uint16_t), side + skipped,
                  (kBlockTokens * kv_dim() - skipped) * sizeof(uint16_t));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<RematRows> RematLayer(int layer, const uint8_t* payload,
                                       int /*first_row*/,
                                       Buffers& buffers) const override {
    // Copied, since a payload has no alignment.
    const size_t side = kBlockTokens * kv_dim();
    buffers.half.resize(2 * side);
    std::memcpy(buffers.half.data(), payload + plan().layer(layer).at,
                2 * side * sizeof(uint16_t));
    return RematRows{.k_final = buffers.half.data(),
                     .v_final = buffers.half.data() + side};
  }

  static constexpr size_t kKeys = 0;
  static constexpr size_t kValues = 1;
  size_t kv_dim() const { return static_cast<size_t>(plan().shape().kv_dim); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeKvFp16(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  const PayloadMatrix side = HalfMatrix(sources.shape.kv_dim);
  PayloadPlan plan(sources.shape, {});
  for (int i = 0; i < sources.shape.num_layers; ++i) {
    plan.AddLayer({side, side});
  }
  return std::make_unique<const KvFp16>(std::move(canonical), std::move(plan),
                                        isa);
}

}  // namespace xcache
