// Codecs on the device: the payloads of many pages to K and V of one layer, in
// kernels. One file for each codec; a codec that has none is decoded by the
// CPU's codec, whose rows are uploaded (../remat.h).
#ifndef XCACHE_ENGINE_DEVICE_CODECS_CODEC_H_
#define XCACHE_ENGINE_DEVICE_CODECS_CODEC_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/kernels/quantize_groups.h"
#include "engine/model/model.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/profile.h"

namespace xcache::cuda {

// Of codecs that have both: from codes to tiles in one kernel on tensor cores
// (DeviceOps::FusedRemat), where the device has it and heads are not too wide;
// or by way of FP16 rows in memory and the vendor's product, which is the
// reference.
enum class RematKernel { kFused, kTwoStep };

// Some pages that are rematerialized together. All arrays are the device's.
struct RematBatch {
  int num_blocks = 0;
  const uint8_t* const* payloads = nullptr;  // [num_blocks]
  const BlockTarget* targets = nullptr;      // [num_blocks]
  int32_t* invalid = nullptr;                // [num_blocks]
  // What a codec that writes the tiles itself does to K and V. Its blocks are
  // `targets`; it has no rows.
  StoreKvArgs store;
};
// Room for num_blocks * 64 rows, a multiple of kGemmRows.
struct RematScratch {
  uint16_t* latent = nullptr;  // [rows, latent_width()]
  float* kv = nullptr;         // [rows, 2 kv_dim]
  float* sums = nullptr;       // [rows, sums_width()]
};
// K and V before biases and RoPE. Null: the codec has written the tiles itself.
struct PreRows {
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t stride = 0;
};

// Some full blocks that are sealed together. All arrays are the device's; rows
// are null where the codec's live_rows() does not ask for them.
struct SealBatch {
  int num_blocks = 0;
  const SealSource* unit_x = nullptr;  // [num_blocks]
  const SealSource* rms = nullptr;
  const SealSource* k_pre = nullptr;
  const SealSource* v_pre = nullptr;
  const uint8_t* const* payloads = nullptr;  // [num_blocks], the sources' own
  int32_t* invalid = nullptr;  // [num_blocks], of the layer at hand
};
struct SealScratch {
  float* rows = nullptr;    // [num_blocks, seal_floats()]
  float* ranges = nullptr;  // [num_blocks, seal_units(), 2]
};

// Immutable; lives no longer than the device and the CPU's codec.
class DeviceCodec {
 public:
  virtual ~DeviceCodec() = default;
  // FP16 elements a row that it needs of the scratch.
  virtual int latent_width() const = 0;
  // FP32 elements a row that it keeps in the scratch from a layer to the next.
  // 0: its layers stand for themselves. Else the layers of a batch are enqueued
  // in order, from the first one on, all with the same sums, which no other
  // batch touches meanwhile.
  virtual int sums_width() const { return 0; }
  // Enqueues one layer of the sums alone; nothing where there are none. Remat
  // begins with that.
  virtual void Advance(DeviceOps& /*ops*/, int /*layer*/,
                       const RematBatch& /*batch*/,
                       const RematScratch& /*scratch*/) const {}
  // Enqueues the work for one layer.
  virtual PreRows Remat(DeviceOps& ops, int layer, const RematBatch& batch,
                        const RematScratch& scratch) const = 0;

  // Sealing. Scratch of one block; 0 floats where the CPU's codec seals.
  virtual size_t seal_floats() const { return 0; }
  virtual size_t seal_units() const { return 0; }
  // Enqueues one layer, in order from 0 on: the bytes that the CPU's codec
  // writes for these rows.
  virtual void Seal(DeviceOps& /*ops*/, int /*layer*/,
                    const SealBatch& /*batch*/,
                    const SealScratch& /*scratch*/) const {}
};

struct DeviceCodecSources {
  const Codec* codec = nullptr;
  const Profile* profile = nullptr;  // null where the codec needs none
  const Model* model = nullptr;
  DeviceOps* ops = nullptr;
  ThreadPool* pool = nullptr;
  RematKernel remat_kernel = RematKernel::kFused;
};
// Whether FusedRemat is asked for and can be.
bool UsesFusedRemat(const DeviceCodecSources& sources);

// Null: the codec, or these options of it, have no kernels. An error is the
// device's: no memory.
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceCodec(
    const DeviceCodecSources& sources);

// Each of these is one codec's, but for the cross-layer pair.
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceKivi(
    const DeviceCodecSources& sources);
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceKvFp16(
    const DeviceCodecSources& sources);
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquant(
    const DeviceCodecSources& sources);
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceCrossLayer(
    const DeviceCodecSources& sources);
absl::StatusOr<std::unique_ptr<const DeviceCodec>> MakeDeviceXquantGqa(
    const DeviceCodecSources& sources);

// [W_k; W_v] of each layer as the CPU's codecs have them: FP16 with the norm's
// gain folded in, [layers, 2 kv_dim, d]. `turn`, where there is one, changes
// each row [d] before it is rounded.
absl::Status UploadProjections(const DeviceCodecSources& sources,
                               const std::function<void(float* row)>& turn,
                               DeviceMemory& to);

// The product of a batch's latent rows [rows, k] with w [n, k] FP16, into the
// scratch's K and V: n is 2 kv_dim, or kv_dim where it is K alone.
PreRows ProjectToKv(DeviceOps& ops, const RematBatch& batch,
                    const RematScratch& scratch, const uint16_t* w, int n,
                    int k, int kv_dim);

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_CODECS_CODEC_H_
