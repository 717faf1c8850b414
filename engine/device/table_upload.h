// Small arrays that kernels read, gathered on the host and uploaded together.
#ifndef XCACHE_ENGINE_DEVICE_TABLE_UPLOAD_H_
#define XCACHE_ENGINE_DEVICE_TABLE_UPLOAD_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/status_macros.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

class TableUpload {
 public:
  explicit TableUpload(DeviceOps& ops)
      : ops_(ops), staging_(ops), device_(ops) {}

  // Begins anew. REQUIRES: work on what was uploaded before has ended.
  void Clear() { bytes_.clear(); }
  // Adds an array and returns its handle.
  template <typename T>
  size_t Add(std::span<const T> array) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t at =
        (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
    bytes_.resize(at + array.size_bytes());
    if (!array.empty()) {
      std::memcpy(bytes_.data() + at, array.data(), array.size_bytes());
    }
    return at;
  }
  template <typename T>
  size_t Add(const std::vector<T>& array) {
    return Add(std::span<const T>(array));
  }

  // Enqueues the upload on the compute stream.
  absl::Status Upload() {
    if (bytes_.empty()) return absl::OkStatus();
    XC_RETURN_IF_ERROR(staging_.Reserve(bytes_.size()));
    XC_RETURN_IF_ERROR(device_.Reserve(bytes_.size()));
    std::memcpy(staging_.as<uint8_t>(), bytes_.data(), bytes_.size());
    ops_.CopyToDevice(StreamId::kCompute, device_.as<void>(),
                      staging_.as<void>(), bytes_.size());
    return absl::OkStatus();
  }
  // An uploaded array, on the device.
  template <typename T>
  T* At(size_t handle) const {
    return reinterpret_cast<T*>(device_.as<uint8_t>() + handle);
  }

 private:
  static constexpr size_t kAlignment = 64;

  DeviceOps& ops_;
  std::vector<uint8_t> bytes_;
  PinnedMemory staging_;
  DeviceMemory device_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_TABLE_UPLOAD_H_
