// The list of tiers: host memory, and what lies below it, the fastest first. A
// page that is put is in memory at once and is written to every lower tier
// behind the answer; a page that is found below moves up. To add a tier: an
// implementation of PageStore, and its place in the list (cache_store.cc).
#ifndef XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_
#define XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cachestore/page_store.h"
#include "cachestore/store_stats.h"
#include "cachestore/tiers/memory_page_store.h"
#include "cachestore/tiers/write_behind.h"
#include "engine/base/memory_budget.h"

namespace xcache {

class TieredPageStore : public PageStore {
 public:
  // At most `queue_bytes` of pages wait for each lower tier. `budget` and the
  // tiers must outlive the store.
  TieredPageStore(MemoryBudget& budget, int reclaim_priority,
                  const std::vector<PageStore*>& lower, int64_t queue_bytes);

  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  // OK once the page is in memory. What a tier refuses stays in memory only,
  // and is offered to it again when memory evicts it.
  absl::Status Put(const PageRef& page) override;
  bool Contains(const PageKey& key) const override;
  int64_t LongestPrefix(std::span<const PageKey> keys) const override;
  absl::Status Erase(const PageKey& key) override;
  // Of host memory; tier_stats() has all.
  PageStoreStats stats() const override { return host_.stats(); }
  PageTier tier() const override { return host_.tier(); }

  // Each tier's own, in order.
  std::vector<TierStats> tier_stats() const;
  // Waits until every page that was put before is written or refused.
  void Flush();
  // Drops those of the pages from host memory that nobody uses, once a lower
  // tier has had its chance; does nothing where there is none. Returns the
  // bytes given back.
  int64_t DropFromHost(std::span<const PageKey> keys);

 private:
  struct Lower {
    Lower(PageStore& s, int64_t queue_bytes)
        : store(s), queue(s, queue_bytes) {}
    PageStore& store;
    WriteBehind queue;
    std::atomic<int64_t> get_us{0};
  };

  void OnEvict(const PageRef& page);

  std::vector<std::unique_ptr<Lower>> lower_;
  // Its evictions call back: destroyed before what they use.
  MemoryPageStore host_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_
