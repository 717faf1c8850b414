// kivi on the device: K per channel and V per token, both as they leave their
// products, to the CPU's very bits and back to its very bytes. No products.
#include <memory>

#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

class Kivi final : public MatrixCodec {
 public:
  using MatrixCodec::MatrixCodec;

  int latent_width() const override { return 0; }
  PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                const RematScratch& scratch) const override {
    DecodeArgs decode = DecodeArgsOf(batch);
    decode.out = scratch.kv;
    decode.out_stride = 2 * kv_dim_;
    matrices_.Decode(ops, layer, kKeys, decode);
    decode.out = scratch.kv + kv_dim_;
    matrices_.Decode(ops, layer, kValues, decode);
    return {scratch.kv, scratch.kv + kv_dim_, 2 * kv_dim_};
  }

  size_t seal_floats() const override {
    return static_cast<size_t>(kv_dim_) * kBlockTokens;
  }
  void Seal(DeviceOps& ops, int layer, const SealBatch& batch,
            const SealScratch& scratch) const override {
    EncodeArgs encode = EncodeArgsOf(batch, scratch);
    encode.layer_offset = int64_t{layer} * kBlockTokens * kv_dim_;
    encode.scratch = scratch.rows;
    encode.sources = batch.k_pre;
    matrices_.Encode(ops, layer, kKeys, encode);
    encode.sources = batch.v_pre;
    matrices_.Encode(ops, layer, kValues, encode);
  }

 private:
  static constexpr size_t kKeys = 0;
  static constexpr size_t kValues = 1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceKivi(
    const DeviceCodecSources& sources) {
  return MakeMatrixCodec<Kivi>(sources);
}

}  // namespace xcache::cuda
