// The two directions of the X-cache on a device: pages to K/V tiles, copied
// ahead on a stream of their own while earlier ones are rematerialized, and a
// live block's rows to a page. Sealing ends with rematerializing the page that
// it made, by the very kernels that a resume runs.
#ifndef XCACHE_ENGINE_DEVICE_PAGES_H_
#define XCACHE_ENGINE_DEVICE_PAGES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/thread_pool.h"
#include "engine/common/kv_shape.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/device/remat.h"
#include "engine/device/sequence.h"
#include "engine/device/table_upload.h"
#include "engine/engine.h"

namespace xcache::cuda {

// A page's payload and where it goes.
struct PageJob {
  int64_t block_index = 0;
  std::span<const uint8_t> payload;
  uint32_t checksum = 0;  // of the whole page
  // Where its tiles are written, but for the sinks'. Null: into scratch, to see
  // whether the payload is valid.
  uint16_t* tiles = nullptr;
  // Where the payload is to stay, or null.
  uint8_t* kept_payload = nullptr;
  absl::Status status;  // out; DATA_LOSS: the codec refuses the payload
};

// A full live block.
struct SealJob {
  int64_t block_index = 0;
  const uint16_t* tiles = nullptr;
  const float* live_rows = nullptr;
  std::span<uint8_t> payload;  // out
};

class DevicePages {
 public:
  // All arguments but `shape` must outlive it.
  DevicePages(DeviceOps& ops, DeviceRemat& remat, ThreadPool& pool,
              const KvShape& shape);

  // Begins to copy the payloads of jobs, at most kRematBlocks; how many of
  // them. The next Remat copies those anew that are not its first jobs.
  int64_t Stage(const DeviceCodecHandle& codec, std::span<const PageJob> jobs);
  // Before a codec goes: drops what is staged of it.
  void Forget(const DeviceCodecHandle& codec);
  // Waits until all is done. RESOURCE_EXHAUSTED: no room to work in; the jobs'
  // tiles are unspecified then.
  // keep_staged: these are others than what is staged, which stays.
  absl::Status Remat(const DeviceCodecHandle& codec, std::span<PageJob> jobs,
                     bool keep_staged = false);
  // Encodes the blocks' rows, on the device where it has kernels for that; else
  // they are downloaded and the CPU's codec encodes them, to the same bytes.
  // INTERNAL: a value is not finite.
  absl::Status Seal(const DeviceCodecHandle& codec, std::span<SealJob> jobs);

 private:
  // A page that Stage has copied. Of equal address, place and checksum is equal
  // content.
  struct StagedPage {
    int64_t block_index = 0;
    const uint8_t* payload = nullptr;
    uint32_t checksum = 0;
  };

  // Room for two runs of `blocks` payloads of this codec.
  absl::Status ReservePayloads(const DeviceCodecHandle& codec, size_t blocks);
  void DropStaged();
  // Where page i of the run `half` is.
  size_t PlaceOf(const DeviceCodecHandle& codec, size_t half, size_t i) const;
  // A part of a run's payloads, to where `to` has them.
  void CopyPart(const DeviceCodecHandle& codec, LayerRange layers, size_t half,
                std::span<const PageJob> jobs,
                std::span<const uint8_t* const> to);
  // How many of the jobs, from the first one on, are staged.
  size_t NumStaged(const DeviceCodecHandle& codec,
                   std::span<const PageJob> jobs) const;
  absl::Status RematOnDevice(const DeviceCodecHandle& codec,
                             std::span<PageJob> jobs, bool keep_staged);
  absl::Status RematThroughHost(const DeviceCodecHandle& codec,
                                std::span<PageJob> jobs);
  // At most kSealBlocks jobs.
  absl::Status SealOnDevice(const DeviceCodecHandle& codec,
                            std::span<SealJob> jobs);
  absl::Status SealOnHost(const DeviceCodecHandle& codec,
                          std::span<SealJob> jobs);

  DeviceOps& ops_;
  DeviceRemat& remat_;
  ThreadPool& pool_;
  const KvShape shape_;

  TableUpload tables_;
  PinnedMemory staging_;   // two runs of payloads
  DeviceMemory payloads_;  // the same
  size_t run_blocks_ = 0;  // that a run has room for
  const DeviceCodecHandle* staged_codec_ = nullptr;
  std::vector<StagedPage> staged_;  // in the first run
  PinnedMemory sealed_staging_;
  DeviceMemory sealed_payloads_;
  DeviceMemory scratch_tiles_;
  PinnedMemory host_invalid_;
  PinnedMemory host_rows_;
  DeviceMemory seal_rows_, seal_ranges_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_PAGES_H_
