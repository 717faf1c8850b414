// K/V blocks in the engine's memory by page key: what running sequences share
// and what stays after a turn while there is room. Knows no sequence and no
// page's bytes.
//
// A block that is not whole (KvBlock) is found by who can do with it, and gives
// way to a whole one.
//
// A block that somebody holds is never evicted; the others are, the least
// recently used first, of equally old ones the leaves first. Each block's bytes
// are in the memory budget exactly once, however many hold it.
//
// Thread-safe. Eviction may happen on any thread, since blocks are immutable
// and may be released anywhere.
#ifndef XCACHE_SERVER_CORE_CACHE_BLOCKS_H_
#define XCACHE_SERVER_CORE_CACHE_BLOCKS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "cachestore/page_key.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/core/core_metrics.h"

namespace xcache {

class BlockCache;

// Keeps one block where it is. Movable. Must not outlive its cache.
class BlockHold {
 public:
  BlockHold() = default;
  ~BlockHold();
  BlockHold(BlockHold&& other) noexcept;
  BlockHold& operator=(BlockHold&& other) noexcept;

  const KvBlockRef& kv() const;
  // Whether the block's page was given to the store.
  bool stored() const;
  // Lets go; the block was last used at `tick`.
  void Release(uint64_t tick);

 private:
  friend class BlockCache;
  // Guarded by the cache's lock, except what never changes.
  struct Entry {
    PageKey key{};
    int64_t block_index = 0;
    bool shared = false;  // others may find it
    bool stored = false;
    KvBlockRef kv;
    MemoryReservation memory;
    int pins = 1;
    uint64_t tick = 0;  // of the last use
  };
  BlockHold(BlockCache* cache, Entry* entry) : cache_(cache), entry_(entry) {}
  BlockCache* cache_ = nullptr;
  Entry* entry_ = nullptr;
};

class BlockCache {
 public:
  explicit BlockCache(CoreMetrics& metrics) : metrics_(metrics) {}
  ~BlockCache();  // REQUIRES: no hold is left

  // A block that is there, and is whole where it has to be. Nothing: it is not.
  std::optional<BlockHold> Acquire(const PageKey& key, bool whole = true);
  bool Contains(const PageKey& key, bool whole = true) const;
  // Takes a block and the memory reserved for it. Where `key` is there already,
  // the block stays the holder's own; but one that is not whole becomes that of
  // its holders, where this one is.
  BlockHold Insert(const PageKey& key, int64_t block_index, KvBlockRef kv,
                   MemoryReservation memory, bool stored);
  // A block that nobody else may find.
  BlockHold KeepPrivate(KvBlockRef kv, MemoryReservation memory);

  // Drops blocks that nobody holds until `wanted_bytes` are free; returns the
  // bytes that are.
  int64_t Evict(int64_t wanted_bytes);
  // Drops these where nobody holds them.
  int64_t Drop(std::span<const PageKey> keys);

  // Time, as the order of uses. Later is larger.
  uint64_t Tick() { return clock_.fetch_add(1, std::memory_order_relaxed) + 1; }
  // Of the block that would be evicted first; the largest value: none.
  uint64_t OldestTick() const;

  size_t num_blocks() const;

 private:
  friend class BlockHold;
  using Entry = BlockHold::Entry;
  // By tick, then from the leaves up.
  using LruKey = std::tuple<uint64_t, int64_t, Entry*>;

  Entry* FindLocked(const PageKey& key, bool whole) const XC_REQUIRES(mu_);
  void Unpin(Entry* entry, uint64_t tick);
  static LruKey KeyOf(Entry* entry);
  // Takes an entry out of the maps; the caller destroys it without the lock.
  std::unique_ptr<Entry> Remove(Entry* entry) XC_REQUIRES(mu_);

  CoreMetrics& metrics_;
  std::atomic<uint64_t> clock_{0};
  mutable Mutex mu_;
  std::unordered_map<PageKey, std::unique_ptr<Entry>, DigestHash> blocks_
      XC_GUARDED_BY(mu_);
  std::set<LruKey> unheld_ XC_GUARDED_BY(mu_);
  size_t num_private_ XC_GUARDED_BY(mu_) = 0;
};

// Releases from the last block to the first, so that leaves are evicted first.
void ReleaseFrom(std::vector<BlockHold>& holds, size_t first, uint64_t tick);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CACHE_BLOCKS_H_
