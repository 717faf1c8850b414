// The store as the server sees it: pages in host memory over pages on disk, and
// sessions. Opens two RocksDBs, runs the write-behind and the housekeeping.
//
//   MemoryBudget budget(memory_bytes);
//   CacheStoreOptions options;
//   options.dir = "/var/lib/xcache";
//   XC_ASSIGN_OR_RETURN(auto store, CacheStore::Open(options, budget));
//
//   // A turn: pages as blocks seal, then the manifest, then the final message.
//   store->PutPage(key, parent, std::move(page_bytes));
//   final.durable = store->sessions().Commit(record).ok();
//
// Rules: R2 (content address), R3 (faults), R4 (durable in order), R5 (caps).
#ifndef XCACHE_CACHESTORE_CACHE_STORE_H_
#define XCACHE_CACHESTORE_CACHE_STORE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/page_key.h"
#include "cachestore/page_prefetch.h"
#include "cachestore/page_store.h"
#include "cachestore/session_store.h"
#include "cachestore/shared/shared_policy.h"
#include "cachestore/store_stats.h"
#include "cachestore/upkeep.h"
#include "engine/base/memory_budget.h"

namespace rocksdb {
class Env;
}

namespace xcache {

class ObjectStore;

struct CacheStoreOptions {
  // Made with mode 0700 where it is missing. Empty: no disk, nothing survives.
  std::string dir;
  // Everything in `dir`: WAL, SST and blob files, garbage in them, and what a
  // compaction needs for a while. At least 16 MiB.
  int64_t disk_bytes = int64_t{10} << 30;
  // Never fill the file system further than this.
  int64_t min_free_bytes = int64_t{256} << 20;
  // Block cache and memtables of both databases together; 0: 1/16 of the
  // budget, within 8 MiB and 256 MiB.
  int64_t rocksdb_bytes = 0;
  // Bytes of pages that wait to be written; 0: 1/16 of the budget.
  int64_t write_queue_bytes = 0;
  // Background writes of RocksDB, bytes a second; 0: not limited.
  int64_t compaction_bytes_per_s = int64_t{64} << 20;
  // How often the housekeeping looks at disk use and the degraded mode.
  int housekeeping_ms = 1000;
  // What deleted sessions said is gone from the files of sessions so soon
  // after, and from those of pages, which hold token ids: theirs is more to
  // rewrite.
  std::chrono::milliseconds purge_sessions_after = std::chrono::minutes(1);
  std::chrono::milliseconds purge_pages_after = std::chrono::hours(24);
  // Pages are given back from host memory after what registered with a lower
  // priority (working sets).
  int reclaim_priority = 100;

  // The tier that machines share: pages and manifests, each over a client of
  // its own, so that manifests never wait behind pages. Null: there is none.
  std::shared_ptr<ObjectStore> shared_pages{};
  std::shared_ptr<ObjectStore> shared_sessions{};
  SharedPolicy shared_policy = SharedPolicy::kStrict;
  // Of a page that nobody uses; 0: for ever.
  std::chrono::milliseconds shared_page_life = std::chrono::hours(24 * 7);

  // For tests: RocksDB's files. Null: the real ones.
  rocksdb::Env* env = nullptr;
};

class CacheStore {
 public:
  // A store of format 1 becomes one of today's. FAILED_PRECONDITION: it is in
  // use, or of a later format version. DATA_LOSS: its sessions would not open,
  // and may be repaired; pages that would not are set aside, and none is no
  // error. PERMISSION_DENIED, ...: the folder cannot be made or read. Each
  // message is one line and names `dir`.
  // `budget` must outlive the store.
  static absl::StatusOr<std::unique_ptr<CacheStore>> Open(
      const CacheStoreOptions& options, MemoryBudget& budget);

  struct RepairReport {
    int64_t sessions_kept = 0;
    int64_t sessions_dropped = 0;
    // Table files too damaged for RocksDB to be given them.
    int64_t tables_dropped = 0;
  };
  // Makes sessions that will not open usable again, keeping every one that is
  // whole; what is not is dropped, and the damaged files are kept aside in
  // `dir`/lost. REQUIRES: no process has it open (FAILED_PRECONDITION).
  static absl::StatusOr<RepairReport> Repair(const CacheStoreOptions& options);

  // Writes what waits to be written, as far as the disk allows, and closes.
  virtual ~CacheStore() = default;

  virtual PageStore& pages() = 0;
  virtual SessionStore& sessions() = 0;

  // Makes the page and puts it in: in memory at once, on disk soon. An error
  // means that it will have to be computed again, and no more than that.
  virtual absl::Status PutPage(const PageKey& key, const PageKey& parent,
                               std::string bytes) = 0;

  // Asks the shared tier for pages of a request, which come into host memory.
  // Null: there is no such tier, or it is away. Does not wait.
  virtual std::unique_ptr<PagePrefetch> Prefetch(PrefetchRequest) {
    return nullptr;
  }

  // To be called now and then: has pages that nobody used for long deleted from
  // the shared tier, some at a time. `now_ms`: Unix time that is believed.
  virtual void SweepShared(int64_t /*now_ms*/) {}

  // Waits until the pages that were put so far are written, those of the shared
  // tier for some seconds at most, and syncs all there is. UNAVAILABLE: writing
  // has stopped.
  virtual absl::Status Flush() = 0;

  // Drops a session's pages from host memory where no one uses them; they stay
  // on disk. Returns the bytes given back.
  virtual int64_t DropFromHost(std::span<const PageKey> keys) = 0;

  virtual StoreStats stats() const = 0;

  // Gives `sink` the files of a folder that opens as a store: it has every
  // session that was committed before the call, and the pages of then. Serving
  // goes on; what a compaction replaces meanwhile stays on disk until the end.
  // FAILED_PRECONDITION: there is no disk. ABORTED: a backup or a look is under
  // way. UNAVAILABLE: writing has stopped. RESOURCE_EXHAUSTED: the store needs
  // the room of what it keeps for the backup. Else what `sink` says.
  virtual absl::StatusOr<BackupReport> Backup(const BackupOptions& options,
                                              BackupSink& sink) = 0;

  // Reads every session and page on disk and every table file, and checks
  // them. Damaged pages are dropped, as by Get; damaged sessions stay. Errors:
  // as above, or what `options.progress` says.
  virtual absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options) = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_CACHE_STORE_H_
