// kivi on the device: K per channel and V per token, both as they leave their
// products, to the CPU's very bits and back to its very bytes. No products.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

class Kivi final : public DeviceCodec {
 public:
  // K is the first of the matrices, V the second; every layer's are alike.
  Kivi(std::unique_ptr<const DeviceMatrices> matrices, int kv_dim)
      : matrices_(std::move(matrices)), kv_dim_(kv_dim) {}

  int latent_width() const override { return 0; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out = scratch.kv;
    decode.out_stride = 2 * kv_dim_;
    matrices_->Decode(ops, kKeys, KeysAt(layer), decode);
    decode.out = scratch.kv + kv_dim_;
    matrices_->Decode(ops, kValues, ValuesAt(layer), decode);
    return {scratch.kv, scratch.kv + kv_dim_, 2 * kv_dim_};
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(kv_dim_) * kBlockTokens;
  }
  size_t seal_units() const override { return matrices_->max_units(); }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    EncodeArgs encode;
    encode.sources = batch.k_pre;
    encode.layer_offset = int64_t{layer} * kBlockTokens * kv_dim_;
    encode.scratch = scratch.rows;
    encode.ranges = scratch.ranges;
    encode.invalid = batch.invalid;
    encode.num_blocks = batch.num_blocks;
    matrices_->Encode(ops, kKeys, KeysAt(layer), encode);
    encode.sources = batch.v_pre;
    matrices_->Encode(ops, kValues, ValuesAt(layer), encode);
  }

 private:
  static constexpr size_t kKeys = 0;
  static constexpr size_t kValues = 1;

  // Offsets in a payload.
  int64_t KeysAt(int layer) const {
    return layer * static_cast<int64_t>(matrices_->bytes(kKeys) +
                                        matrices_->bytes(kValues));
  }
  int64_t ValuesAt(int layer) const {
    return KeysAt(layer) + static_cast<int64_t>(matrices_->bytes(kKeys));
  }

  const std::unique_ptr<const DeviceMatrices> matrices_;
  const int kv_dim_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceKivi(
    const DeviceCodecSources& sources) {
  const HyperParams& h = sources.model->hparams();
  SpecOptions options(sources.codec->spec());
  const int bits = options.TakeInt("bits").value_or(0);
  const std::optional<MatrixForm> form = TakeMatrixForm(options);
  const bool rotate = options.Take("rotate") == "on";
  if (!options.complete() || !form.has_value() || bits < 1 || bits > 8) {
    return nullptr;
  }
  auto matrices = std::make_unique<DeviceMatrices>(*sources.ops, *form);
  const std::vector<int> widths(static_cast<size_t>(h.kv_dim()), bits);
  const size_t keys = matrices->AddPerChannel(widths);
  const size_t values = matrices->AddPerToken(h.kv_dim(), bits, rotate);
  if (static_cast<size_t>(h.num_layers) *
          (matrices->bytes(keys) + matrices->bytes(values)) !=
      sources.codec->payload_bytes()) {
    return nullptr;
  }
  XC_RETURN_IF_ERROR(matrices->Upload(*sources.ops));
  return std::make_unique<const Kivi>(std::move(matrices), h.kv_dim());
}

}  // namespace xcache::cuda
