// Codec kv-fp16: the working set's own FP16 rows, lossless. The baseline of
// every comparison, and what a K/V cache without an X-cache would store.
#include <bit>
#include <cstring>

#include "engine/base/status_macros.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"

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

class KvFp16 final : public Codec {
 public:
  KvFp16(CodecSpec spec, const CodecShape& shape)
      : spec_(std::move(spec)),
        num_layers_(shape.num_layers),
        kv_dim_(static_cast<size_t>(shape.kv_dim)) {}

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override { return kLiveKvFinal; }
  RematStage remat_stage() const override { return RematStage::kFinal; }
  size_t payload_at(int layer) const override {
    return static_cast<size_t>(layer) * 2 * side_bytes();
  }

  int num_layers() const override { return num_layers_; }
  bool layers_independent() const override { return true; }

  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          int first_row,
                          std::span<uint8_t> payload) const override {
    if (payload.size() != payload_bytes()) {
      return WrongPayloadSize(payload_bytes(), payload.size());
    }
    uint8_t* out = payload.data() + payload_at(range.begin);
    const size_t skipped = static_cast<size_t>(first_row) * 2 * kv_dim_;
    for (int layer = range.begin; layer < range.end; ++layer) {
      const LayerRows in = rows(layer);
      for (const uint16_t* side : {in.k_final, in.v_final}) {
        for (int row = first_row; row < kBlockTokens; ++row) {
          if (!AllFinite(side + static_cast<size_t>(row) * kv_dim_, kv_dim_)) {
            return NotFinite(side == in.k_final ? "K" : "V", layer, row);
          }
        }
        std::memset(out, 0, skipped);
        std::memcpy(out + skipped,
                    side + static_cast<size_t>(first_row) * kv_dim_,
                    side_bytes() - skipped);
        out += side_bytes();
      }
    }
    return absl::OkStatus();
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           int /*first_row*/,
                           const RematSink& sink) const override {
    if (payload.size() != payload_bytes()) {
      return WrongPayloadSize(payload_bytes(), payload.size());
    }
    // Copied, since a payload has no alignment.
    std::vector<uint16_t> rows(2 * kBlockTokens * kv_dim_);
    for (int layer = range.begin; layer < range.end; ++layer) {
      std::memcpy(rows.data(), payload.data() + payload_at(layer),
                  2 * side_bytes());
      RematRows out;
      out.k_final = rows.data();
      out.v_final = rows.data() + kBlockTokens * kv_dim_;
      sink(layer, out);
    }
    return absl::OkStatus();
  }

 private:
  // Bytes of K, or V, of one layer.
  size_t side_bytes() const { return 2 * kBlockTokens * kv_dim_; }

  const CodecSpec spec_;
  const int num_layers_;
  const size_t kv_dim_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeKvFp16(
    const CodecSpec& spec, const CodecSources& sources, Isa /*isa*/) {
  OptionReader options(spec);
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  return std::make_unique<const KvFp16>(std::move(canonical), sources.shape);
}

}  // namespace xcache
