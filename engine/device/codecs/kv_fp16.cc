// kv-fp16 on the device: the payload's rows are the tiles', transposed for K.
#include <memory>

#include "engine/device/codecs/codec.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

class KvFp16 final : public DeviceCodec {
 public:
  explicit KvFp16(const KvLayout& layout) : layout_(layout) {}

  int latent_width() const override { return 0; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& /*scratch*/) const override {
    StoreFinalArgs args;
    args.payloads = batch.payloads;
    args.offset = int64_t{layer} * 2 * 2 * kBlockTokens * layout_.n_kv_heads *
                  layout_.head_dim;
    args.blocks = batch.targets;
    args.layout = layout_;
    args.layer = layer;
    args.num_blocks = batch.num_blocks;
    ops.StoreFinal(args);
    return {};
  }

 private:
  const KvLayout layout_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceKvFp16(
    const DeviceCodecSources& sources) {
  const HyperParams& h = sources.model->hparams();
  const size_t expected = static_cast<size_t>(h.num_layers) * 2 * 2 *
                          kBlockTokens * static_cast<size_t>(h.kv_dim());
  if (!SpecOptions(sources.codec->spec()).complete() ||
      sources.codec->payload_bytes() != expected) {
    return nullptr;
  }
  return std::make_unique<const KvFp16>(
      KvLayout{h.num_layers, h.n_kv_heads, h.head_dim});
}

}  // namespace xcache::cuda
