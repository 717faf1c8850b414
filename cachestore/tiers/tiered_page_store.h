// Host memory over disk. A page that is put is in memory at once, and a thread
// writes it to disk behind the answer; a page that is found on disk moves up.
#ifndef XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_
#define XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_

#include <cstdint>
#include <list>
#include <span>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "cachestore/page_store.h"
#include "cachestore/store_stats.h"
#include "cachestore/tiers/memory_page_store.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

class TieredPageStore : public PageStore {
 public:
  // At most `queue_bytes` of pages wait to be written; where the queue is full
  // whoever puts a page writes it. `budget` and `disk` must outlive the store.
  TieredPageStore(MemoryBudget& budget, int reclaim_priority, PageStore& disk,
                  int64_t queue_bytes);
  // Writes what waits.
  ~TieredPageStore() override;

  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  // OK once the page is in memory. What the disk refuses stays in memory only,
  // and is offered to it again when memory evicts it.
  absl::Status Put(const PageRef& page) override;
  bool Contains(const PageKey& key) const override;
  absl::Status Erase(const PageKey& key) override;
  // Of both: a page counts where it was found, misses where neither has it.
  PageStoreStats stats() const override;

  // Writes those of the pages that wait, in this thread; returns when each is
  // written or refused.
  void WriteOut(std::span<const PageKey> keys);
  // Waits until every page that was put before is written or refused.
  void Flush();

  MemoryPageStore& host() { return host_; }
  const MemoryPageStore& host() const { return host_; }
  SpillStats spill_stats() const;

 private:
  using Queue = std::list<PageRef>;

  void WriterLoop();
  // Takes a page out of the queue, to be written; Write() then writes it.
  PageRef TakeLocked(Queue::iterator it) XC_REQUIRES(mu_);
  void Write(const PageRef& page) XC_EXCLUDES(mu_);
  void OnEvict(const PageRef& page);

  PageStore& disk_;
  const int64_t queue_bytes_limit_;

  mutable Mutex mu_;
  CondVar changed_;
  Queue queue_ XC_GUARDED_BY(mu_);
  absl::flat_hash_map<PageKey, Queue::iterator, DigestHash> queued_
      XC_GUARDED_BY(mu_);
  // Taken out of the queue and not yet written.
  absl::flat_hash_set<PageKey, DigestHash> writing_ XC_GUARDED_BY(mu_);
  bool stop_ XC_GUARDED_BY(mu_) = false;
  int64_t misses_ XC_GUARDED_BY(mu_) = 0;
  int64_t puts_ XC_GUARDED_BY(mu_) = 0;
  int64_t put_bytes_ XC_GUARDED_BY(mu_) = 0;
  SpillStats spill_ XC_GUARDED_BY(mu_);

  // Its evictions call back: destroyed before what they use.
  MemoryPageStore host_;
  std::thread writer_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_
