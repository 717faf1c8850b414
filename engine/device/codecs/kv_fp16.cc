// kv-fp16 on the device: the payload's rows are the tiles', transposed for K.
#include <memory>

#include "engine/device/codecs/codec.h"

namespace xcache::cuda {
namespace {

class KvFp16 final : public DeviceCodec {
 public:
  explicit KvFp16(const DeviceCodecSources& sources)
      : plan_(sources.codec->plan()),
        layout_{plan_.num_layers(), sources.model->hparams().n_kv_heads,
                sources.model->hparams().head_dim} {}

  int latent_width() const override { return 0; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& /*scratch*/) const override {
    StoreFinalArgs args;
    args.payloads = batch.payloads;
    args.offset = static_cast<int64_t>(plan_.at(layer));
    args.blocks = batch.targets;
    args.layout = layout_;
    args.layer = layer;
    args.num_blocks = batch.num_blocks;
    ops.StoreFinal(args);
    return {};
  }

 private:
  const PayloadPlan& plan_;
  const KvLayout layout_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceKvFp16(
    const DeviceCodecSources& sources) {
  return std::make_unique<const KvFp16>(sources);
}

}  // namespace xcache::cuda
