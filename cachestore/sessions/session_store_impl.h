// The session store over a RocksDB, or over memory alone.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_STORE_IMPL_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_STORE_IMPL_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/session_store.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

class SessionStoreImpl : public SessionStore {
 public:
  struct Parts {
    Database* db = nullptr;          // null: memory alone
    DiskPageStore* pages = nullptr;  // null where db is
    // Deletes pages, wherever they are.
    std::function<void(std::span<const PageKey>)> erase_pages;
  };

  // Reads the index of sessions. What is in `parts`, and the budget, must
  // outlive the store. RESOURCE_EXHAUSTED: no memory for the index.
  static absl::StatusOr<std::unique_ptr<SessionStoreImpl>> Open(
      Parts parts, MemoryBudget& budget);

  absl::StatusOr<Committed> Commit(const SessionRecord& record) override {
    return Commit(record, /*sync=*/true);
  }
  // The same; unless `sync`, a power loss may take it back.
  absl::StatusOr<Committed> Commit(const SessionRecord& record, bool sync);
  absl::StatusOr<SessionRecord> Load(std::string_view tenant,
                                     std::string_view id) override;
  absl::StatusOr<SessionSummary> Find(std::string_view tenant,
                                      std::string_view id) override;
  Durability DurabilityOf(const SessionRecord& record) const override;
  absl::StatusOr<SessionPage> List(std::string_view tenant,
                                   std::string_view page_token,
                                   int limit) override;
  absl::Status Delete(std::string_view tenant, std::string_view id) override;
  int64_t Sweep(int64_t now_ms,
                const std::function<bool(std::string_view, std::string_view)>&
                    in_use) override;
  SessionStoreStats stats() const override;
  TenantSessions UseOf(std::string_view tenant) const override;

  // Keeps what is safe elsewhere, if there is a disk that takes it; not synced.
  // Otherwise the session is not known here any more.
  void KeepCopy(const SessionRecord& record);
  // Of those whose summary `wanted` likes, in no order.
  std::vector<SessionSummary> Select(
      const std::function<bool(const SessionSummary&)>& wanted) const;

  // Writes the manifests that are in memory only.
  void WriteUndurable();
  // Those that have sessions.
  std::vector<std::string> tenants() const;
  // Reads what is on disk of a session and checks it, its entry in the index
  // too. Returns how many bytes that was. NOT_FOUND, DATA_LOSS, UNAVAILABLE: as
  // Load.
  absl::StatusOr<int64_t> Check(std::string_view tenant, std::string_view id);
  // How many sessions were deleted since the start.
  int64_t num_deleted() const { return num_deleted_; }

 private:
  using Order = std::set<ListPlace>;
  // A manifest that is not on disk.
  struct Undurable {
    std::string manifest;
    MemoryReservation memory;
  };

  SessionStoreImpl(Parts parts, MemoryBudget& budget);
  absl::Status ReadIndex();
  // What a head, or a manifest, says of a session; where it is damaged, no more
  // than that, and it is counted.
  SessionSummary Summarize(const std::string& key, std::string_view bytes);
  // The summary in memory; nothing: it has none.
  std::optional<SessionSummary> Known(const std::string& key) const;
  // Enters a summary, in place of the one before. REQUIRES: ReserveIndex().
  void Enter(const std::string& key, SessionSummary summary);
  void Leave(const std::string& key);
  // Memory for one more session; with `reclaim`, others may have to give way.
  bool ReserveIndex(bool reclaim);
  absl::Status NoMemory() const;
  absl::Status WriteManifest(const std::string& key, std::string_view manifest,
                             bool sync);
  absl::Status KeepInMemory(const std::string& key, std::string manifest);
  void Claim(const std::string& key, std::span<const PageKey> chain,
             bool pinned);
  absl::Status DeleteKey(const std::string& key, bool sync);
  absl::StatusOr<SessionRecord> Read(const std::string& key);
  void MarkDamaged(const std::string& key);
  void CountCommit() XC_REQUIRES(mu_);
  Mutex& WriteLock(const std::string& key);

  const Parts parts_;
  MemoryBudget& budget_;
  // Of one session one write at a time, so that disk and memory agree.
  std::array<Mutex, 64> write_mu_;

  mutable Mutex mu_;  // after a write lock
  absl::flat_hash_map<std::string, SessionSummary> summaries_
      XC_GUARDED_BY(mu_);
  std::map<std::string, Order> orders_ XC_GUARDED_BY(mu_);  // by tenant
  std::map<std::string, int64_t, std::less<>> page_bytes_
      XC_GUARDED_BY(mu_);  // by tenant, of those in orders_
  absl::flat_hash_map<std::string, std::shared_ptr<const Undurable>> undurable_
      XC_GUARDED_BY(mu_);
  SessionStoreStats stats_ XC_GUARDED_BY(mu_);
  std::atomic<int64_t> num_deleted_{0};

  Mutex index_mu_;  // its memory is reserved without mu_: reclaimers may run
  MemoryReservation index_memory_ XC_GUARDED_BY(index_mu_);
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_STORE_IMPL_H_
