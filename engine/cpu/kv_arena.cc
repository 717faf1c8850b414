#include "engine/cpu/kv_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace xcache {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Large enough that rounding a slab up to huge pages is a few per cent at most.
constexpr size_t kSlabBytes = size_t{32} << 20;
// Each splits a mapping in up to three, of the 65,530 that Linux allows.
constexpr int kMostSplits = 8192;
// A block starts on a page, so that its memory can be given back.
constexpr size_t kPage = 4096;

size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

KvArena::KvArena(size_t block_bytes)
    : block_bytes_(RoundUp(std::max<size_t>(block_bytes, 1), kPage)),
      slab_blocks_(
          static_cast<int>(std::max<size_t>(1, kSlabBytes / block_bytes_))) {}

KvArena::~KvArena() {
  for (const auto& [first, slab] : slabs_) {
    ::munmap(slab.mapping, slab.mapped_bytes);
  }
}

void* KvArena::Allocate() {
  MutexLock lock(mu_);
  ++used_;
  for (auto& [first, slab] : slabs_) {
    uint8_t* block = nullptr;
    if (!slab.resident.empty()) {
      block = slab.resident.back();
      slab.resident.pop_back();
      --resident_;
    } else if (!slab.empty.empty()) {
      block = slab.empty.back().block;
      if (slab.empty.back().no_huge_pages) {
        (void)::madvise(block, block_bytes_, MADV_HUGEPAGE);
        --no_huge_pages_;
      }
      slab.empty.pop_back();
    } else {
      continue;
    }
    ++slab.used;
    return block;
  }
  const size_t usable =
      RoundUp(static_cast<size_t>(slab_blocks_) * block_bytes_, kHugePage);
  Slab slab;
  slab.mapped_bytes = usable + kHugePage;  // to align the first block
  slab.mapping = ::mmap(nullptr, slab.mapped_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (slab.mapping == MAP_FAILED) std::abort();
  const auto address = reinterpret_cast<uintptr_t>(slab.mapping);
  uint8_t* first = static_cast<uint8_t*>(slab.mapping) +
                   (RoundUp(address, kHugePage) - address);
  // Refused where the kernel has no huge pages: then it is slower.
  (void)::madvise(first, usable, MADV_HUGEPAGE);
  for (int i = slab_blocks_ - 1; i > 0; --i) {
    slab.empty.push_back(
        {first + static_cast<size_t>(i) * block_bytes_, false});
  }
  slab.used = 1;
  slabs_.emplace(first, std::move(slab));
  return first;
}

void KvArena::Free(void* freed) {
  auto* block = static_cast<uint8_t*>(freed);
  MutexLock lock(mu_);
  auto it = std::prev(slabs_.upper_bound(block));
  Slab& slab = it->second;
  --used_;
  --slab.used;
  if (slab.used == 0 && slabs_.size() > 1) {
    resident_ -= static_cast<int>(slab.resident.size());
    no_huge_pages_ -= static_cast<int>(
        std::ranges::count_if(slab.empty, &Empty::no_huge_pages));
    ::munmap(slab.mapping, slab.mapped_bytes);
    slabs_.erase(it);
    return;
  }
  // About a slab's worth is kept for the next sequences.
  if (resident_ < slab_blocks_) {
    slab.resident.push_back(block);
    ++resident_;
  } else {
    // A huge page that a neighbour touches, or that the kernel puts together
    // from its neighbours' pages, would take this memory again unasked.
    const bool no_huge_pages = no_huge_pages_ < kMostSplits;
    if (no_huge_pages) {
      (void)::madvise(block, block_bytes_, MADV_NOHUGEPAGE);
      ++no_huge_pages_;
    }
    (void)::madvise(block, block_bytes_, MADV_DONTNEED);
    slab.empty.push_back({block, no_huge_pages});
  }
}

size_t KvArena::resident_bytes() const {
  MutexLock lock(mu_);
  return static_cast<size_t>(used_ + resident_) * block_bytes_;
}

}  // namespace xcache
