// The tier of pages that machines share, in an object store: each page an
// object of its own under its key, written once. It holds no page in memory,
// only what it knows of some: which are there, which are not, which are
// damaged.
//
// A page that is damaged is given to nobody, and the next Put of it replaces
// that very object. One that has been there for half of its life is wanted
// again by Put; one that nobody put again for all of it is deleted by Sweep, of
// whichever machine.
//
// While the store does not answer, calls fail at once but for one now and then
// (CircuitBreaker).
#ifndef XCACHE_CACHESTORE_SHARED_SHARED_PAGE_STORE_H_
#define XCACHE_CACHESTORE_SHARED_SHARED_PAGE_STORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/remote_page_store.h"
#include "cachestore/shared/circuit_breaker.h"
#include "cachestore/shared/object_store.h"
#include "engine/base/memory_budget.h"

namespace xcache {

struct SharedPageOptions {
  std::chrono::milliseconds page_life = std::chrono::hours(24 * 7);  // 0: ever
  std::chrono::milliseconds get_timeout{5000};
  std::chrono::milliseconds put_timeout{10000};
  // Of the question whether it is back: with the breaker's longest pause less
  // than the 10 s within which it is to be found again.
  std::chrono::milliseconds probe_timeout{2000};
  // How long a page that was not there is not asked for again.
  std::chrono::milliseconds absent_for{5000};
  // Keys that are remembered: of pages that are there, and that are not.
  size_t max_known = size_t{1} << 16;
  size_t max_absent = size_t{1} << 14;
  CircuitBreaker::Options breaker{};
  // Between two folders that Sweep looks at, at least, and less than twice as
  // long: so all of them take some hours.
  std::chrono::milliseconds sweep_pause{30000};
  // Unix time, for the envelopes; empty: the system's.
  std::function<int64_t()> unix_ms{};
};

// How the shared store answers.
struct SharedClientStats {
  CircuitBreaker::State breaker = CircuitBreaker::State::kClosed;
  int64_t breaker_opened = 0;
  ObjectStoreStats objects;
};

struct SharedPageStats : SharedClientStats {
  int64_t negative_hits = 0;  // misses that asked nobody
  int64_t refreshed = 0;      // pages put again for their age
  int64_t folders_swept = 0;
  int64_t pages_swept = 0;
};

class SharedPageStore final : public RemotePageStore {
 public:
  // INVALID_ARGUMENT: no store. RESOURCE_EXHAUSTED: no memory for what it
  // remembers. `budget` must outlive it.
  static absl::StatusOr<std::unique_ptr<SharedPageStore>> Open(
      std::shared_ptr<ObjectStore> objects, MemoryBudget& budget,
      const SharedPageOptions& options);
  ~SharedPageStore() override;

  // Waits for the answer: not for threads that have better things to do.
  // UNAVAILABLE, DEADLINE_EXCEEDED: the store does not answer.
  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  // The same. OK also where another machine was faster.
  absl::Status Put(const PageRef& page) override;
  // Whether it was put or got within its life, and not missed since.
  bool Contains(const PageKey& key) const override;
  // Has it deleted, and does not wait for that.
  absl::Status Erase(const PageKey& key) override;
  // Pages and bytes: of those that it knows to be there.
  PageStoreStats stats() const override;
  PageTier tier() const override { return PageTier::kShared; }

  void Fetch(const PageKey& key, Arrived done) override;
  absl::StatusOr<PageRef> Accept(const PageKey& key, Arrival arrival) override;
  bool Wants(const PageKey& key) const override;
  void Look(const PageKey& key, std::function<void()> done) override;
  bool IsReachable() const override;
  void Cancel() override;
  void Housekeep() override;

  // Has the pages of one folder deleted that nobody put for all of their life,
  // and does not wait for that; the next call takes the next folder, where it
  // is time to. `now_ms`: Unix time that is believed. Ages are told by the
  // store's own clock, and nothing is deleted where that is far from `now_ms`
  // (rule R11).
  void Sweep(int64_t now_ms);

  SharedPageStats shared_stats() const;

 private:
  struct State;

  SharedPageStore(std::shared_ptr<ObjectStore> objects, MemoryBudget& budget,
                  const SharedPageOptions& options);

  MemoryBudget& budget_;
  MemoryReservation memory_;
  // Calls that are under way hold on to it, and not to the objects' store.
  const std::shared_ptr<State> state_;
  const std::shared_ptr<ObjectStore> objects_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_SHARED_PAGE_STORE_H_
