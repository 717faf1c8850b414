#include "engine/device/memory.h"

#include <algorithm>
#include <iterator>

namespace xcache::cuda {
namespace {

// Kernels read pieces with aligned loads.
constexpr size_t kPieceAlignment = 256;
// Few enough slabs to look through, small enough to be given back.
constexpr size_t kSlabBytes = size_t{64} << 20;
constexpr size_t kMinSlabs = 32;

}  // namespace

DevicePool::DevicePool(std::shared_ptr<DeviceOps> ops, size_t cap_bytes)
    : ops_(std::move(ops)), cap_bytes_(cap_bytes) {}

DevicePool::~DevicePool() {
  for (auto& [first, slab] : slabs_) ops_->Free(first);
}

bool DevicePool::AddSlab(size_t piece_bytes) {
  const size_t room = cap_bytes_ - held_;
  // A small pool is not to be taken by the first size that asks.
  const size_t slab_bytes = std::min(kSlabBytes, cap_bytes_ / kMinSlabs);
  const size_t most = std::max<size_t>(1, slab_bytes / piece_bytes);
  for (size_t n : {std::min(most, room / piece_bytes), size_t{1}}) {
    if (n == 0 || n * piece_bytes > room) return false;
    auto* first = static_cast<uint8_t*>(ops_->Allocate(n * piece_bytes));
    if (first == nullptr) continue;
    Slab slab;
    slab.piece_bytes = piece_bytes;
    slab.bytes = n * piece_bytes;
    for (size_t i = n; i-- > 0;) slab.free.push_back(first + i * piece_bytes);
    held_ += slab.bytes;
    slabs_.emplace(first, std::move(slab));
    return true;
  }
  return false;
}

void DevicePool::Trim() {
  for (auto it = slabs_.begin(); it != slabs_.end();) {
    if (it->second.used > 0) {
      ++it;
      continue;
    }
    ops_->Free(it->first);
    held_ -= it->second.bytes;
    it = slabs_.erase(it);
  }
}

void* DevicePool::Allocate(size_t bytes) {
  const size_t piece_bytes =
      (std::max<size_t>(bytes, 1) + kPieceAlignment - 1) / kPieceAlignment *
      kPieceAlignment;
  MutexLock lock(mu_);
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (auto& [first, slab] : slabs_) {
      if (slab.piece_bytes != piece_bytes || slab.free.empty()) continue;
      uint8_t* piece = slab.free.back();
      slab.free.pop_back();
      ++slab.used;
      used_ += piece_bytes;
      return piece;
    }
    if (AddSlab(piece_bytes)) continue;
    Trim();
    if (!AddSlab(piece_bytes)) return nullptr;
  }
  return nullptr;
}

void DevicePool::Free(void* piece) {
  auto* p = static_cast<uint8_t*>(piece);
  MutexLock lock(mu_);
  Slab& slab = std::prev(slabs_.upper_bound(p))->second;
  slab.free.push_back(p);
  --slab.used;
  used_ -= slab.piece_bytes;
}

size_t DevicePool::held_bytes() const {
  MutexLock lock(mu_);
  return held_;
}

size_t DevicePool::used_bytes() const {
  MutexLock lock(mu_);
  return used_;
}

}  // namespace xcache::cuda
