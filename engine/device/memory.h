// Device and pinned host memory with owners, and the pool that K/V blocks and
// live rows come from, which has a hard cap.
#ifndef XCACHE_ENGINE_DEVICE_MEMORY_H_
#define XCACHE_ENGINE_DEVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

// Memory of a device, or pinned memory of the host, freed with its owner. Its
// contents are unspecified.
template <bool kPinned>
class OwnedMemory {
 public:
  explicit OwnedMemory(DeviceOps& ops) : ops_(ops) {}
  ~OwnedMemory() { Release(); }
  OwnedMemory(const OwnedMemory&) = delete;
  OwnedMemory& operator=(const OwnedMemory&) = delete;

  // At least `bytes`; what was in it is lost where it grows, and work that uses
  // it must have ended. RESOURCE_EXHAUSTED where there is none left.
  absl::Status Reserve(size_t bytes) {
    if (bytes <= bytes_) return absl::OkStatus();
    // Half as much again, so that growing step by step stays cheap.
    const size_t wanted = bytes_ == 0 ? bytes : bytes + bytes / 2;
    Release();
    for (size_t size : {wanted, bytes}) {
      data_ = kPinned ? ops_.AllocatePinned(size) : ops_.Allocate(size);
      if (data_ == nullptr) continue;
      bytes_ = size;
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError(kPinned ? "no pinned host memory left"
                                                : "no device memory left");
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void Release() {
    if (data_ == nullptr) return;
    kPinned ? ops_.FreePinned(data_) : ops_.Free(data_);
    data_ = nullptr;
    bytes_ = 0;
  }

  DeviceOps& ops_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};
using DeviceMemory = OwnedMemory<false>;
using PinnedMemory = OwnedMemory<true>;

// Copies an array to the device and waits.
template <typename T>
absl::Status UploadArray(DeviceOps& ops, std::span<const T> array,
                         DeviceMemory& to) {
  const absl::Status status = to.Reserve(array.size_bytes());
  if (!status.ok()) return status;
  ops.CopyToDevice(StreamId::kCompute, to.as<void>(), array.data(),
                   array.size_bytes());
  ops.Synchronize(StreamId::kCompute);
  return absl::OkStatus();
}

// Pieces of a few sizes, taken from the device in slabs. Never holds more than
// the cap, slabs' unused pieces included; what is free of one size is given
// back to the device where another size needs it. Thread-safe: pieces may be
// freed anywhere. A piece is reused at once: work on it must have ended.
class DevicePool {
 public:
  DevicePool(std::shared_ptr<DeviceOps> ops, size_t cap_bytes);
  ~DevicePool();  // REQUIRES: every piece was freed
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  // nullptr: the cap, or the device's memory, is reached.
  void* Allocate(size_t bytes);
  void Free(void* piece);

  size_t cap_bytes() const { return cap_bytes_; }
  size_t held_bytes() const;  // slabs
  size_t used_bytes() const;  // pieces, rounded up

 private:
  struct Slab {
    size_t piece_bytes = 0;
    size_t bytes = 0;
    int used = 0;
    std::vector<uint8_t*> free;
  };

  bool AddSlab(size_t piece_bytes) XC_REQUIRES(mu_);
  // Gives the slabs back of which nothing is used.
  void Trim() XC_REQUIRES(mu_);

  const std::shared_ptr<DeviceOps> ops_;
  const size_t cap_bytes_;
  mutable Mutex mu_;
  std::map<uint8_t*, Slab> slabs_ XC_GUARDED_BY(mu_);
  size_t held_ XC_GUARDED_BY(mu_) = 0;
  size_t used_ XC_GUARDED_BY(mu_) = 0;
};

// One piece of a pool.
class PoolPiece {
 public:
  PoolPiece() = default;
  // Check with `get`: null where the pool is exhausted.
  PoolPiece(std::shared_ptr<DevicePool> pool, size_t bytes)
      : pool_(std::move(pool)), data_(pool_->Allocate(bytes)) {}
  ~PoolPiece() {
    if (data_ != nullptr) pool_->Free(data_);
  }
  PoolPiece(PoolPiece&& other) noexcept
      : pool_(std::move(other.pool_)),
        data_(std::exchange(other.data_, nullptr)) {}
  PoolPiece& operator=(PoolPiece&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(data_, other.data_);
    return *this;
  }

  void* get() const { return data_; }

 private:
  std::shared_ptr<DevicePool> pool_;
  void* data_ = nullptr;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_MEMORY_H_
