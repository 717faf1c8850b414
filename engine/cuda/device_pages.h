// The two directions of the X-cache on a device: pages to K/V tiles, copied
// ahead on a stream of their own while earlier ones are rematerialized, and a
// live block's rows to a page. Sealing ends with rematerializing the page that
// it made, by the very kernels that a resume runs.
#ifndef XCACHE_ENGINE_CUDA_DEVICE_PAGES_H_
#define XCACHE_ENGINE_CUDA_DEVICE_PAGES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/thread_pool.h"
#include "engine/cpu_kv.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/device_ops.h"
#include "engine/cuda/device_remat.h"
#include "engine/cuda/device_sequence.h"
#include "engine/cuda/table_upload.h"
#include "engine/engine.h"

namespace xcache::cuda {

// A page's payload and where it goes.
struct PageJob {
  int64_t block_index = 0;
  std::span<const uint8_t> payload;
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

  // Waits until all is done. RESOURCE_EXHAUSTED: no room to work in; the jobs'
  // tiles are unspecified then.
  absl::Status Remat(const DeviceCodecHandle& codec, std::span<PageJob> jobs);
  // Encodes the blocks' rows, on the device where it has kernels for that; else
  // they are downloaded and the CPU's codec encodes them, to the same bytes.
  // INTERNAL: a value is not finite.
  absl::Status Seal(const DeviceCodecHandle& codec, std::span<SealJob> jobs);

 private:
  absl::Status RematOnDevice(const DeviceCodecHandle& codec,
                             std::span<PageJob> jobs);
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
  DeviceMemory scratch_tiles_;
  PinnedMemory host_invalid_;
  PinnedMemory host_rows_;
  DeviceMemory seal_rows_, seal_ranges_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_DEVICE_PAGES_H_
