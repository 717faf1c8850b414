#include "cachestore/cache_store.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/rocksdb/store_options.h"
#include "cachestore/sessions/session_store_impl.h"
#include "cachestore/tiers/memory_page_store.h"
#include "cachestore/tiers/tiered_page_store.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// A share of the budget, within limits.
int64_t Share(int64_t cap_bytes, int64_t option) {
  if (option > 0) return option;
  return std::clamp<int64_t>(cap_bytes / 16, int64_t{8} << 20,
                             int64_t{256} << 20);
}

class CacheStoreImpl : public CacheStore {
 public:
  CacheStoreImpl(const CacheStoreOptions& options, MemoryBudget& budget)
      : options_(options), budget_(budget) {}

  ~CacheStoreImpl() override {
    {
      MutexLock lock(mu_);
      stop_ = true;
      changed_.SignalAll();
    }
    if (db_ != nullptr) db_->StopCompactions();
    if (housekeeper_.joinable()) housekeeper_.join();
    if (tiered_ != nullptr) tiered_->Flush();
    if (sessions_ != nullptr) sessions_->WriteUndurable();
  }

  absl::Status Open() {
    SessionStoreImpl::Parts parts;
    parts.model_fp = options_.model_fp;
    if (options_.dir.empty()) {
      memory_ =
          std::make_unique<MemoryPageStore>(budget_, options_.reclaim_priority);
    } else {
      XC_ASSIGN_OR_RETURN(
          db_,
          StoreDb::Open(DbOptions(options_, budget_.cap_bytes()), budget_));
      XC_ASSIGN_OR_RETURN(
          disk_, DiskPageStore::Open(*db_, budget_, [this] { Kick(); }));
      tiered_ = std::make_unique<TieredPageStore>(
          budget_, options_.reclaim_priority, *disk_,
          Share(budget_.cap_bytes(), options_.write_queue_bytes));
      parts.db = db_.get();
      parts.pages = disk_.get();
      parts.write_out = [this](std::span<const PageKey> keys) {
        tiered_->WriteOut(keys);
      };
    }
    XC_ASSIGN_OR_RETURN(sessions_,
                        SessionStoreImpl::Open(std::move(parts), budget_));
    if (db_ != nullptr) {
      housekeeper_ = std::thread([this] { HousekeepingLoop(); });
    }
    return absl::OkStatus();
  }

  PageStore& pages() override {
    if (tiered_ != nullptr) return *tiered_;
    return *memory_;
  }
  SessionStore& sessions() override { return *sessions_; }

  absl::Status PutPage(const PageKey& key, const PageKey& parent,
                       std::string bytes) override {
    XC_ASSIGN_OR_RETURN(const PageRef page,
                        MakePage(budget_, key, parent, std::move(bytes)));
    return pages().Put(page);
  }

  absl::Status Flush() override {
    if (tiered_ != nullptr) tiered_->Flush();
    if (db_ != nullptr && db_->degraded()) {
      return absl::UnavailableError("the store has stopped writing");
    }
    return absl::OkStatus();
  }

  int64_t DropFromHost(std::span<const PageKey> keys) override {
    if (tiered_ == nullptr) return 0;  // they would be gone for good
    tiered_->WriteOut(keys);
    return tiered_->host().Drop(keys);
  }

  StoreStats stats() const override {
    StoreStats stats;
    stats.sessions = sessions_->stats();
    if (tiered_ == nullptr) {
      stats.host = memory_->stats();
      return stats;
    }
    stats.host = tiered_->host().stats();
    stats.disk = disk_->stats();
    stats.spill = tiered_->spill_stats();
    stats.files = db_->stats();
    stats.files.live_bytes = stats.disk.page_bytes;
    return stats;
  }

 private:
  void Kick() {
    MutexLock lock(mu_);
    kicked_ = true;
    changed_.SignalAll();
  }

  void HousekeepingLoop() {
    const auto interval = std::chrono::milliseconds(options_.housekeeping_ms);
    for (;;) {
      {
        MutexLock lock(mu_);
        if (!stop_ && !kicked_) changed_.WaitFor(mu_, interval);
        if (stop_) return;
        kicked_ = false;
      }
      db_->Housekeep();
      if (!db_->degraded()) disk_->MakeRoom();
      sessions_->WriteUndurable();
    }
  }

  const CacheStoreOptions options_;
  MemoryBudget& budget_;
  // The stores below call Kick() to the end: these outlive them.
  Mutex mu_;
  CondVar changed_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  bool kicked_ XC_GUARDED_BY(mu_) = false;

  std::unique_ptr<StoreDb> db_;
  std::unique_ptr<DiskPageStore> disk_;
  std::unique_ptr<TieredPageStore> tiered_;
  std::unique_ptr<MemoryPageStore> memory_;  // where there is no disk
  std::unique_ptr<SessionStoreImpl> sessions_;
  std::thread housekeeper_;
};

}  // namespace

StoreDbOptions DbOptions(const CacheStoreOptions& options,
                         int64_t memory_cap_bytes) {
  return {.dir = options.dir,
          .disk_bytes = options.disk_bytes,
          .min_free_bytes = options.min_free_bytes,
          .rocksdb_bytes = Share(memory_cap_bytes, options.rocksdb_bytes),
          .compaction_bytes_per_s = options.compaction_bytes_per_s,
          .env = options.env};
}

absl::StatusOr<std::unique_ptr<CacheStore>> CacheStore::Open(
    const CacheStoreOptions& options, MemoryBudget& budget) {
  if (!options.dir.empty() && options.disk_bytes < kMinDiskBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--disk-bytes is ", options.disk_bytes, ", the least is ",
                     kMinDiskBytes));
  }
  auto store = std::make_unique<CacheStoreImpl>(options, budget);
  XC_RETURN_IF_ERROR(store->Open());
  return store;
}

}  // namespace xcache
