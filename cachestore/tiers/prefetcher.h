// Fetches pages of requests from a remote tier, many at a time, each once
// however many want it. One thread looks at what comes and puts it where it
// belongs; it is nobody's who has something else to do.
#ifndef XCACHE_CACHESTORE_TIERS_PREFETCHER_H_
#define XCACHE_CACHESTORE_TIERS_PREFETCHER_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "cachestore/page_prefetch.h"
#include "cachestore/remote_page_store.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

struct PrefetcherOptions {
  int max_running = 32;             // pages that are fetched at once
  int max_running_of_one = 16;      // of one request
  int64_t window_bytes = 64 << 20;  // of pages that are fetched at once, about
  // Of pages that came for one request and that it has not got to yet.
  int64_t ahead_bytes = 256 << 20;
};

class Prefetcher {
 public:
  // `arrived` is given each page that came, and `is_here` says whether one
  // needs not be fetched; both on any thread, without a lock but `is_here`,
  // which must be quick. All must outlive this.
  Prefetcher(RemotePageStore& remote, MemoryBudget& budget,
             const PrefetcherOptions& options,
             std::function<void(const PageRef&)> arrived,
             std::function<bool(const PageKey&)> is_here);
  // REQUIRES: no prefetch is left.
  ~Prefetcher();

  std::unique_ptr<PagePrefetch> Start(PrefetchRequest request) XC_EXCLUDES(mu_);

 private:
  using Clock = std::chrono::steady_clock;
  class Handle;
  struct Chain;
  using ChainPtr = std::shared_ptr<Chain>;
  // What callbacks of the remote tier reach, whenever they come.
  struct Inbox;
  struct Running {
    std::vector<ChainPtr> waiting;
    MemoryReservation memory;  // what will come, about
  };

  void Loop() XC_EXCLUDES(mu_);
  // Asks for what may be asked for now.
  void Pump() XC_EXCLUDES(mu_);
  // The next page to ask for, of whichever chain's turn it is.
  std::optional<PageKey> TakeNext() XC_REQUIRES(mu_);
  bool TakeNextOf(const ChainPtr& chain, std::optional<PageKey>* key)
      XC_REQUIRES(mu_);
  bool MayRunMore() const XC_REQUIRES(mu_);
  void Arrive(const PageKey& key, RemotePageStore::Arrival arrival)
      XC_EXCLUDES(mu_);
  void Tell(Chain& chain, const PageKey& key,
            const absl::StatusOr<PageRef>& page) XC_REQUIRES(mu_);

  RemotePageStore& remote_;
  MemoryBudget& budget_;
  const PrefetcherOptions options_;
  const std::function<void(const PageRef&)> arrived_;
  const std::function<bool(const PageKey&)> is_here_;
  const std::shared_ptr<Inbox> inbox_;

  mutable Mutex mu_;
  std::deque<ChainPtr> chains_ XC_GUARDED_BY(mu_);  // whose turn it is first
  absl::flat_hash_map<PageKey, Running, DigestHash> running_ XC_GUARDED_BY(mu_);
  int64_t page_bytes_ XC_GUARDED_BY(mu_) = 256 << 10;  // of the largest so far
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_PREFETCHER_H_
