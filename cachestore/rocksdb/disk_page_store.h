// Pages in RocksDB (BlobDB), with an index of them in memory: what is there,
// what came from what, which sessions lay claim to what, and so what goes first
// when the disk's cap asks for it.
#ifndef XCACHE_CACHESTORE_ROCKSDB_DISK_PAGE_STORE_H_
#define XCACHE_CACHESTORE_ROCKSDB_DISK_PAGE_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/page_store.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/tiers/page_index.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

uint64_t UnixMicros();

class DiskPageStore : public PageStore {
 public:
  // Reads the index of pages. Both must outlive the store. `on_full`, if given,
  // is called (on any thread) when a page was refused for want of room.
  static absl::StatusOr<std::unique_ptr<DiskPageStore>> Open(
      Database& db, MemoryBudget& budget, std::function<void()> on_full);

  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  // Written, not synced: a synced write that follows makes it durable.
  absl::Status Put(const PageRef& page) override;
  bool Contains(const PageKey& key) const override;
  absl::Status Erase(const PageKey& key) override;
  PageStoreStats stats() const override;
  PageTier tier() const override { return PageTier::kDisk; }
  // Reads a page and checks it, as Get does, for that alone: it is no hit, and
  // not used more recently for it. Returns how many bytes it has.
  absl::StatusOr<int64_t> Check(const PageKey& key);

  // Keeps a session's chain of pages from eviction: those of it that are here,
  // and those on their way; replaces its earlier claim. `used_us`: Unix time.
  void Claim(const std::string& session, std::span<const PageKey> chain,
             bool pinned, uint64_t used_us);
  void Unclaim(const std::string& session);
  // The end of a chain that no other chain and no claim needs, the last page
  // first.
  std::vector<PageKey> Unneeded(std::span<const PageKey> chain) const;
  // The database was begun anew: nothing is here any more.
  void StartAnew();

  // Evicts pages until what is live fits its share of the cap: leaves first,
  // the least recently used first; then the claims of sessions that are not
  // pinned go, the least recently used first. Then collects garbage while the
  // disk is above its high water. Blocks.
  void MakeRoom();
  // Rewrites every blob file, a share after another: what was deleted is gone
  // from the disk then. Blocks.
  absl::Status CollectAll();
  // How many claims the disk's cap took away.
  int64_t num_demoted() const { return num_demoted_; }

 private:
  struct SessionClaim {
    // The last page that was here, and the last one, which may be on its way.
    // As a claimed page keeps its ancestors, they keep the chain.
    PageKey here{};
    PageKey last{};
    bool pinned = false;
    bool active = false;  // not demoted, and there is a chain
    uint64_t used_us = 0;
  };

  // Pages in one thread's hands. A page's records and its place in the index
  // change together, and only by who holds its key: so what one thread deletes
  // is never what another has just put. Reading needs no hold.
  class Held {
   public:
    explicit Held(DiskPageStore& store) : store_(store) {}
    // Waits until no one else holds it. REQUIRES: this holds nothing yet.
    Held(DiskPageStore& store, const PageKey& key);
    ~Held();
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    // REQUIRES: no one holds it; the store's lock (clang cannot follow it
    // here).
    void Add(const PageKey& key) XC_NO_THREAD_SAFETY_ANALYSIS;
    const std::vector<PageKey>& keys() const { return keys_; }

   private:
    DiskPageStore& store_;
    std::vector<PageKey> keys_;
  };
  struct Value {
    PageKey parent{};
    std::string bytes;
  };

  DiskPageStore(Database& db, MemoryBudget& budget,
                std::function<void()> on_full);
  absl::Status Load();
  uint64_t Now() XC_REQUIRES(mu_);
  bool ReserveIndex() XC_REQUIRES(mu_);
  // Its memory is reserved.
  struct ValueInMemory : Value {
    MemoryReservation memory;
  };
  absl::StatusOr<ValueInMemory> ReadChecked(const PageKey& key,
                                            int64_t num_bytes);
  absl::StatusOr<Value> Read(const PageKey& key);
  absl::StatusOr<Value> ReadHeld(const PageKey& key);
  absl::Status DeleteRecords(std::span<const PageKey> keys);
  void EvictPages(int64_t wanted_bytes);
  bool DemoteOne() XC_REQUIRES(mu_);
  void Deactivate(const std::string& session, SessionClaim& claim)
      XC_REQUIRES(mu_);

  Database& db_;
  MemoryBudget& budget_;
  const std::function<void()> on_full_;
  std::atomic<int64_t> num_demoted_{0};

  mutable Mutex mu_;
  uint64_t clock_us_ XC_GUARDED_BY(mu_) = 0;
  CondVar released_;
  absl::flat_hash_set<PageKey, DigestHash> held_ XC_GUARDED_BY(mu_);
  PageIndex index_ XC_GUARDED_BY(mu_);
  MemoryReservation index_memory_ XC_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, SessionClaim> claims_ XC_GUARDED_BY(mu_);
  // Active claims that are not pinned, the least recently used first.
  std::set<std::pair<uint64_t, std::string>> demotable_ XC_GUARDED_BY(mu_);
  PageStoreStats stats_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_DISK_PAGE_STORE_H_
