#include "cachestore/cache_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/sessions/rebuild.h"
#include "cachestore/sessions/session_store_impl.h"
#include "cachestore/sessions/shared_session_store.h"
#include "cachestore/shared/shared_page_store.h"
#include "cachestore/tiers/tiered_page_store.h"
#include "cachestore/upkeep_impl.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
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

// Rewrites a database's files some time after there is something to be rid of.
struct PurgeTimer {
  // Whether it is time to, with so many deletions up to now.
  bool IsDue(int64_t num_deleted) {
    const auto now = std::chrono::steady_clock::now();
    if (num_deleted == purged) return false;
    if (!since) since = now;
    return now - *since >= delay;
  }
  void Done(int64_t num_deleted) {
    purged = num_deleted;
    since.reset();
  }

  std::chrono::steady_clock::duration delay;
  int64_t purged = 0;
  std::optional<std::chrono::steady_clock::time_point> since = std::nullopt;
};

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
    if (sessions_db_ != nullptr) sessions_db_->StopCompactions();
    if (pages_db_ != nullptr) pages_db_->StopCompactions();
    if (housekeeper_.joinable()) housekeeper_.join();
    shared_sessions_.reset();
    if (tiers_ != nullptr) tiers_->Flush();
    if (sessions_ != nullptr) sessions_->WriteUndurable();
  }

  absl::Status Open() {
    SessionStoreImpl::Parts parts;
    std::vector<PageStore*> lower;
    if (!options_.dir.empty()) {
      XC_RETURN_IF_ERROR(OpenDisk());
      lower.push_back(disk_.get());
      parts.db = sessions_db_.get();
      parts.pages = disk_.get();
      parts.erase_pages = [this](std::span<const PageKey> keys) {
        for (const PageKey& key : keys) tiers_->EraseHere(key);
      };
    }
    RemoteTierOptions remote;
    if (options_.shared_pages != nullptr) {
      XC_RETURN_IF_ERROR(OpenShared(&remote));
    }
    tiers_ = std::make_unique<TieredPageStore>(
        budget_, options_.reclaim_priority, lower,
        Share(budget_.cap_bytes(), options_.write_queue_bytes), remote);
    XC_ASSIGN_OR_RETURN(sessions_,
                        SessionStoreImpl::Open(std::move(parts), budget_));
    if (options_.shared_sessions != nullptr) {
      shared_sessions_ = std::make_unique<SharedSessionStore>(
          *options_.shared_sessions, *sessions_, budget_,
          SharedSessionStore::Options{.policy = options_.shared_policy});
    }
    if (sessions_db_ != nullptr || shared_ != nullptr) {
      housekeeper_ = std::thread([this] { HousekeepingLoop(); });
    }
    return absl::OkStatus();
  }

  PageStore& pages() override { return *tiers_; }
  SessionStore& sessions() override {
    if (shared_sessions_ != nullptr) return *shared_sessions_;
    return *sessions_;
  }

  absl::Status PutPage(const PageKey& key, const PageKey& parent,
                       std::string bytes) override {
    XC_ASSIGN_OR_RETURN(const PageRef page,
                        MakePage(budget_, key, parent, std::move(bytes)));
    return tiers_->Put(page);
  }

  absl::Status Flush() override {
    tiers_->Flush();
    for (Database* database : {pages_db_.get(), sessions_db_.get()}) {
      if (database == nullptr) continue;
      if (database->degraded()) {
        return absl::UnavailableError("the store has stopped writing");
      }
      XC_RETURN_IF_ERROR(database->Sync());
    }
    return absl::OkStatus();
  }

  std::unique_ptr<PagePrefetch> Prefetch(PrefetchRequest request) override {
    return tiers_->Prefetch(std::move(request));
  }

  void SweepShared(int64_t now_ms) override {
    if (shared_ != nullptr) shared_->Sweep(now_ms);
  }

  int64_t DropFromHost(std::span<const PageKey> keys) override {
    return tiers_->DropFromHost(keys);
  }

  StoreStats stats() const override {
    StoreStats stats;
    stats.sessions = sessions_->stats();
    if (shared_sessions_ != nullptr) {
      stats.sessions = shared_sessions_->stats();
      stats.shared_sessions = SharedClientStats{
          .breaker = shared_sessions_->breaker().state(),
          .breaker_opened = shared_sessions_->breaker().num_opened(),
          .objects = options_.shared_sessions->stats()};
    }
    stats.tiers = tiers_->tier_stats();
    if (shared_ != nullptr) {
      stats.shared_pages = shared_->shared_stats();
      stats.owed_pages = tiers_->num_owed();
    }
    if (disk_ == nullptr) return stats;
    DiskStats& files = stats.files;
    files.present = true;
    files.cap_bytes = space_->plan().cap;
    files.used_bytes = space_->used_bytes();
    files.free_bytes = space_->free_bytes();
    if (const auto mark = StampOf(BackupMark()); mark.ok()) {
      files.last_backup_ms = mark->modified_ns / 1'000'000;
    }
    files.live_bytes = stats.tier(disk_->tier()).page_bytes;
    files.block_cache_bytes =
        static_cast<int64_t>(resources_->cache->GetUsage());
    const rocksdb::Statistics& statistics = *resources_->statistics;
    const auto ticker = [&](rocksdb::Tickers which) {
      return static_cast<int64_t>(statistics.getTickerCount(which));
    };
    files.wal_syncs = ticker(rocksdb::WAL_FILE_SYNCED);
    files.stall_us = ticker(rocksdb::STALL_MICROS);
    for (const auto& [which, name] : rocksdb::TickersNameMap) {
      const int64_t count = ticker(static_cast<rocksdb::Tickers>(which));
      if (count != 0) files.tickers.emplace_back(name, count);
    }
    sessions_db_->AddStats(&files);
    pages_db_->AddStats(&files);
    if (!files.degraded && !space_->HasFreeSpace()) {
      files.degraded = true;
      files.degraded_reason =
          absl::StrCat("the file system has ", files.free_bytes, " bytes left");
    }
    return stats;
  }

  absl::StatusOr<BackupReport> Backup(const BackupOptions& options,
                                      BackupSink& sink) override {
    tiers_->Flush();
    const auto report =
        WithUpkeep<BackupReport>(options.bytes_per_s, [&](Upkeep& upkeep) {
          return upkeep.Backup(options.sessions_only, sink);
        });
    if (report.ok()) NoteBackup();
    return report;
  }

  absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options) override {
    return WithUpkeep<VerifyReport>(options.bytes_per_s, [&](Upkeep& upkeep) {
      return upkeep.Verify(options);
    });
  }

 private:
  absl::Status OpenShared(RemoteTierOptions* remote) {
    XC_ASSIGN_OR_RETURN(
        shared_, SharedPageStore::Open(options_.shared_pages, budget_,
                                       {.page_life = options_.shared_page_life,
                                        .breaker = {},
                                        .unix_ms = nullptr}));
    remote->store = shared_.get();
    auto memory = budget_.Reserve(
        MemoryAccount::kStoreIndex,
        static_cast<int64_t>(2 * remote->max_owed * OwedPages::kKeyBytes));
    if (!memory) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "--memory-bytes leaves no room for the shared tier: ",
          budget_.used_bytes(), " of ", budget_.cap_bytes(), " are in use"));
    }
    owed_memory_ = *std::move(memory);
    // Of pages on their way, and of those that came before their time.
    remote->prefetch.window_bytes =
        std::min(remote->prefetch.window_bytes, budget_.cap_bytes() / 16);
    remote->prefetch.ahead_bytes =
        std::min(remote->prefetch.ahead_bytes, budget_.cap_bytes() / 8);
    return absl::OkStatus();
  }

  std::string BackupMark() const {
    return absl::StrCat(options_.dir, "/last-backup");
  }
  // The mark's time of modification says when.
  void NoteBackup() {
    const int fd =
        open(BackupMark().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || futimens(fd, nullptr) != 0) {
      XC_LOG_WARN("when the last backup was is not kept", "path={} errno={}",
                  LogValue(BackupMark()), errno);
    }
    if (fd >= 0) close(fd);
  }

  // One at a time: each reads the whole disk.
  template <typename Report, typename Fn>
  absl::StatusOr<Report> WithUpkeep(int64_t bytes_per_s, const Fn& fn) {
    if (sessions_db_ == nullptr) {
      return absl::FailedPreconditionError(
          "there is no store on disk (--store-dir none)");
    }
    if (upkeep_runs_.exchange(true)) {
      return absl::AbortedError(
          "a backup or a look at the store is under way: one at a time");
    }
    Upkeep upkeep({.sessions_db = sessions_db_.get(),
                   .pages_db = pages_db_.get(),
                   .sessions = sessions_.get(),
                   .pages = disk_.get()},
                  bytes_per_s);
    absl::StatusOr<Report> report = fn(upkeep);
    upkeep_runs_ = false;
    return report;
  }

  absl::Status OpenDisk() {
    XC_RETURN_IF_ERROR(MakeFolder(options_.dir));
    XC_ASSIGN_OR_RETURN(lock_,
                        LockFolder(options_.env, options_.dir, options_.dir));
    XC_RETURN_IF_ERROR(PrepareFolder(options_));
    // Beside the cache: buffers of the logs, of flushes and of compactions,
    // each at most about a megabyte.
    constexpr int64_t kBuffers = 8 << 20;
    const int64_t cache_bytes =
        Share(budget_.cap_bytes(), options_.rocksdb_bytes);
    auto memory =
        budget_.Reserve(MemoryAccount::kRocksDb, cache_bytes + kBuffers);
    if (!memory) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "store ", options_.dir, ": RocksDB needs ", cache_bytes + kBuffers,
          " bytes of memory, ", budget_.used_bytes(), " of ",
          budget_.cap_bytes(), " are in use"));
    }
    rocksdb_memory_ = *std::move(memory);
    // A cap that the file system cannot hold would make memtables that it
    // cannot hold either: RocksDB writes again, after a full disk, only where
    // one fits.
    const int64_t total = FileSystemOf(options_.dir).total;
    space_ = std::make_unique<DiskSpace>(
        options_.dir,
        PlanDisk(total > 0 ? std::min(options_.disk_bytes, total)
                           : options_.disk_bytes,
                 cache_bytes),
        options_.min_free_bytes);
    resources_.emplace(cache_bytes, options_.compaction_bytes_per_s);
    const auto open = [&](DatabaseKind kind) {
      return Database::Open({.kind = kind,
                             .dir = options_.dir,
                             .subfolder = "",
                             .env = options_.env,
                             .on_started_anew = [this] { disk_->StartAnew(); }},
                            *resources_, *space_);
    };
    XC_ASSIGN_OR_RETURN(sessions_db_, open(DatabaseKind::kSessions));
    XC_ASSIGN_OR_RETURN(pages_db_, open(DatabaseKind::kPages));
    XC_ASSIGN_OR_RETURN(
        disk_, DiskPageStore::Open(*pages_db_, budget_, [this] { Kick(); }));
    space_->Scan();
    return absl::OkStatus();
  }

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
      tiers_->Housekeep();
      if (sessions_db_ == nullptr) continue;
      space_->Scan();
      sessions_db_->Housekeep();
      pages_db_->Housekeep();
      if (!pages_db_->degraded()) disk_->MakeRoom();
      sessions_->WriteUndurable();
      Purge();
    }
  }

  void Purge() {
    const int64_t num_deleted = sessions_->num_deleted();
    if (purge_sessions_.IsDue(num_deleted) && sessions_db_->Purge().ok()) {
      purge_sessions_.Done(num_deleted);
    }
    if (purge_pages_.IsDue(num_deleted) && disk_->CollectAll().ok()) {
      purge_pages_.Done(num_deleted);
    }
  }

  const CacheStoreOptions options_;
  MemoryBudget& budget_;
  // The stores below call Kick() to the end: these outlive them.
  Mutex mu_;
  CondVar changed_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  bool kicked_ XC_GUARDED_BY(mu_) = false;

  FolderLock lock_;
  MemoryReservation rocksdb_memory_;
  std::unique_ptr<DiskSpace> space_;
  std::optional<DatabaseResources> resources_;
  std::unique_ptr<Database> sessions_db_;
  std::unique_ptr<Database> pages_db_;
  std::unique_ptr<DiskPageStore> disk_;
  MemoryReservation owed_memory_;
  std::unique_ptr<SharedPageStore> shared_;  // null: there is none
  std::unique_ptr<TieredPageStore> tiers_;
  std::unique_ptr<SessionStoreImpl> sessions_;
  std::unique_ptr<SharedSessionStore> shared_sessions_;
  PurgeTimer purge_sessions_{options_.purge_sessions_after};
  PurgeTimer purge_pages_{options_.purge_pages_after};
  std::atomic<bool> upkeep_runs_{false};
  std::thread housekeeper_;
};

}  // namespace

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
