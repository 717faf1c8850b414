// The list of tiers: host memory, and what lies below it, the fastest first. A
// page that is put is in memory at once and is written to every lower tier
// behind the answer; a page that is found below moves up. To add a tier: an
// implementation of PageStore, and its place in the list (cache_store.cc).
//
// The last tier may be at the other end of a network. Nobody waits for it: Get
// and Contains are about this machine's tiers alone, what is only there comes
// by a Prefetch, and what could not be sent to it is owed, and is sent later
// (Housekeep).
#ifndef XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_
#define XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cachestore/page_prefetch.h"
#include "cachestore/page_store.h"
#include "cachestore/remote_page_store.h"
#include "cachestore/store_stats.h"
#include "cachestore/tiers/memory_page_store.h"
#include "cachestore/tiers/owed_pages.h"
#include "cachestore/tiers/prefetcher.h"
#include "cachestore/tiers/write_behind.h"
#include "engine/base/memory_budget.h"

namespace xcache {

struct RemoteTierOptions {
  RemotePageStore* store = nullptr;  // null: there is none
  // Pages that are sent at once.
  int num_writers = 4;
  size_t max_owed = size_t{1} << 16;
  PrefetcherOptions prefetch{};
};

class TieredPageStore : public PageStore {
 public:
  // At most `queue_bytes` of pages wait for each lower tier. `budget` and the
  // tiers must outlive the store.
  TieredPageStore(MemoryBudget& budget, int reclaim_priority,
                  const std::vector<PageStore*>& lower, int64_t queue_bytes,
                  const RemoteTierOptions& remote = {});
  ~TieredPageStore() override;

  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  // OK once the page is in memory. What a tier refuses stays in memory only,
  // and is offered to it again when memory evicts it.
  absl::Status Put(const PageRef& page) override;
  bool Contains(const PageKey& key) const override;
  std::optional<PageTier> TierOf(const PageKey& key) const override;
  int64_t LongestPrefix(std::span<const PageKey> keys) const override;
  absl::Status Erase(const PageKey& key) override;
  // Of host memory; tier_stats() has all.
  PageStoreStats stats() const override { return host_.stats(); }
  PageTier tier() const override { return host_.tier(); }

  // Erases from this machine's tiers: others may have use for the page. Nor is
  // it sent to the remote one, where it was to be.
  void EraseHere(const PageKey& key);

  // Null: there is no remote tier, or it is away.
  std::unique_ptr<PagePrefetch> Prefetch(PrefetchRequest request);

  // Sends some of what is owed to the remote tier, where that is there, and has
  // it looked for some of what was used. To be called about once a second.
  void Housekeep();
  // Pages that the remote tier is still to get, beside those that wait.
  int64_t num_owed() const;

  // Each tier's own, in order.
  std::vector<TierStats> tier_stats() const;
  // Waits until every page that was put before is written or refused; for a
  // remote tier, some seconds at most.
  void Flush();
  // Drops those of the pages from host memory that nobody uses, once a lower
  // tier has had its chance; does nothing where there is none. Returns the
  // bytes given back.
  int64_t DropFromHost(std::span<const PageKey> keys);

 private:
  struct Lower {
    Lower(PageStore& s, WriteBehindOptions options)
        : store(s), queue(s, std::move(options)) {}
    PageStore& store;
    WriteBehind queue;
    std::atomic<int64_t> get_us{0};
  };
  struct Remote {
    Remote(const RemoteTierOptions& options, int64_t queue_bytes);
    RemotePageStore& store;
    // Those to be sent; and those that were used here and are to be looked for
    // there, so that a page in use stays. Shared with calls that are under way.
    const std::shared_ptr<OwedPages> owed, used;
    WriteBehind queue;
  };

  void OnEvict(const PageRef& page);
  void NoteUse(const PageKey& key);
  // A page that came from the remote tier.
  void TakeUp(const PageRef& page);
  // Of this machine's tiers. Null: none has it.
  PageRef Find(const PageKey& key);

  std::vector<std::unique_ptr<Lower>> lower_;
  std::unique_ptr<Remote> remote_;  // null: there is none
  // Its evictions call back: destroyed before what they use.
  MemoryPageStore host_;
  std::unique_ptr<Prefetcher> prefetcher_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_TIERED_PAGE_STORE_H_
