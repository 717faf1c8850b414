// Pages in host memory, within a MemoryBudget. Evicts leaves first, the least
// recently used first, and never a page that someone still refers to: that
// would free nothing.
#ifndef XCACHE_CACHESTORE_TIERS_MEMORY_PAGE_STORE_H_
#define XCACHE_CACHESTORE_TIERS_MEMORY_PAGE_STORE_H_

#include <cstdint>
#include <functional>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "cachestore/page_store.h"
#include "cachestore/tiers/page_index.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

class MemoryPageStore : public PageStore {
 public:
  // Called for each page that the budget asks back, before its memory goes.
  // Must not reserve memory, nor call this store.
  using EvictFn = std::function<void(const PageRef&)>;

  // Registers with the budget, which must outlive the store.
  MemoryPageStore(MemoryBudget& budget, int reclaim_priority,
                  EvictFn on_evict = nullptr);
  ~MemoryPageStore() override;

  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  absl::Status Put(const PageRef& page) override;
  bool Contains(const PageKey& key) const override;
  absl::Status Erase(const PageKey& key) override;
  PageStoreStats stats() const override;

  // As Get, but it is no use of the page and not counted. Null: none.
  PageRef Peek(const PageKey& key) const;
  // The page that is held under the key of `page`: itself, where it was new.
  PageRef PutOrGet(const PageRef& page);

  // Evicts pages until that many bytes are free or no page may go. Returns the
  // bytes of memory given back.
  int64_t Evict(int64_t wanted_bytes);
  // Evicts those of the given pages that no one refers to and that have no
  // child here. Give the keys of a chain in order.
  int64_t Drop(std::span<const PageKey> keys);

 private:
  uint64_t Tick() XC_REQUIRES(mu_) { return ++clock_; }
  // Takes a page out, for the caller to let go of without the lock.
  PageRef TakeOut(const PageKey& key) XC_REQUIRES(mu_);

  const EvictFn on_evict_;
  mutable Mutex mu_;
  uint64_t clock_ XC_GUARDED_BY(mu_) = 0;
  PageIndex index_ XC_GUARDED_BY(mu_);
  absl::flat_hash_map<PageKey, PageRef, DigestHash> pages_ XC_GUARDED_BY(mu_);
  PageStoreStats stats_ XC_GUARDED_BY(mu_);
  MemoryBudget::Registration registration_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_MEMORY_PAGE_STORE_H_
