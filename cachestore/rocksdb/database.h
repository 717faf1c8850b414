// One RocksDB of a store, of sessions or of pages: opened with bounded memory
// and bounded disk, its errors mapped, its degraded mode and the way out of it.
// It knows families of keys and no record but the one that holds the format
// version.
#ifndef XCACHE_CACHESTORE_ROCKSDB_DATABASE_H_
#define XCACHE_CACHESTORE_ROCKSDB_DATABASE_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/pinned_files.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/store_stats.h"
#include "engine/base/mutex.h"
#include "rocksdb/db.h"
#include "rocksdb/listener.h"
#include "rocksdb/options.h"
#include "rocksdb/rate_limiter.h"
#include "rocksdb/statistics.h"
#include "rocksdb/write_buffer_manager.h"

namespace xcache {

// What a key is of: its first byte on disk, which Get, Write and Scan put
// before it and take away.
enum class Family : char {
  kPages = 'p',
  kPageIndex = 'i',
  kSessions = 's',
  kSessionIndex = 'h',
};

// Sessions are precious: each commit is synced, and a database that has lost
// something does not open (DATA_LOSS; --repair). Pages are a cache: nothing is
// synced, and a damaged database is set aside and started anew.
enum class DatabaseKind { kSessions, kPages };
std::string_view DatabaseName(DatabaseKind kind);  // its folder in the store's

// Makes a folder, for its owner alone; OK where it is there and can be used.
absl::Status MakeFolder(const std::string& dir);

// The lock of a folder, by a file LOCK in it. FAILED_PRECONDITION: another
// process has it; the message names the store `dir`. `env` null: real files.
using FolderLock = std::shared_ptr<rocksdb::FileLock>;
absl::StatusOr<FolderLock> LockFolder(rocksdb::Env* env,
                                      const std::string& folder,
                                      const std::string& dir);

// What the databases of a store share.
struct DatabaseResources {
  // Block cache and memtables of all: `cache_bytes` at most. Background writes:
  // so many bytes a second; 0: not limited.
  DatabaseResources(int64_t cache_bytes, int64_t compaction_bytes_per_s);
  std::shared_ptr<rocksdb::Cache> cache;
  std::shared_ptr<rocksdb::WriteBufferManager> memtables;
  std::shared_ptr<rocksdb::RateLimiter> rate_limiter;  // null: none
  std::shared_ptr<rocksdb::Statistics> statistics;
};

struct Format;  // open_check.h

struct DatabaseOptions {
  DatabaseKind kind = DatabaseKind::kSessions;
  std::string dir;              // the store's
  std::string subfolder;        // empty: the kind's
  rocksdb::Env* env = nullptr;  // for tests; null: the real one
  // Called, on the thread of Housekeep(), when what was stored is gone: the
  // database was set aside and is new.
  std::function<void()> on_started_anew;
};

// "what: message", on one line, with the canonical code. Corrupt: DATA_LOSS.
absl::Status FromRocksDb(const rocksdb::Status& status, std::string_view what);

// Whether the process ran out of something that it may have again later:
// descriptors, memory.
bool IsTransient(const rocksdb::Status& status);

// One change of a batch; the bytes must outlive the call.
struct WriteOp {
  Family family = Family::kPages;
  std::string_view key;
  // The value, in two parts. Nothing: the key is deleted.
  std::optional<std::array<std::string_view, 2>> value;
};

class Database : private rocksdb::EventListener {
 public:
  // Errors: as CacheStore::Open. `space` must outlive the database; its memory
  // has been reserved.
  static absl::StatusOr<std::unique_ptr<Database>> Open(
      const DatabaseOptions& options, const DatabaseResources& resources,
      DiskSpace& space);
  ~Database() override;

  // NOT_FOUND; DATA_LOSS: it is there and cannot be had; UNAVAILABLE: not now
  // (descriptors or memory ran out, or the database is being opened again).
  absl::Status Get(Family family, std::string_view key, std::string* value);

  using Room = DiskSpace::Room;
  // Writes all or nothing; with `sync`, it and all that was written before it
  // is on disk when this returns OK. RESOURCE_EXHAUSTED: no room. UNAVAILABLE:
  // writes have stopped after an error, or fail now.
  absl::Status Write(std::span<const WriteOp> ops, bool sync, Room room);

  // Calls fn(key, value) for what can be read of a family, also behind damage.
  // DATA_LOSS: there is damage, the rest was read.
  absl::Status Scan(
      Family family,
      const std::function<void(std::string_view, std::string_view)>& fn);

  // The same of at most `limit` records, in order, from behind the key `after`
  // (empty: the first). Returns how many there were.
  absl::StatusOr<int> ScanSome(
      Family family, std::string_view after, int limit,
      const std::function<void(std::string_view, std::string_view)>& fn);

  // The files that make up what has been written by now. UNAVAILABLE: not now.
  // While they are pinned there is no Purge and no CollectGarbage (CANCELLED):
  // what these write anew comes on top of what they cannot delete.
  absl::StatusOr<std::unique_ptr<PinnedFiles>> PinFiles();

  // Syncs all that was written.
  absl::Status Sync();
  // Rewrites the files, so that what was deleted or overwritten is gone from
  // them. Blocks for as long as it takes, or until StopCompactions().
  absl::Status Purge();
  // Moves what lives in the oldest blob files and deletes these files. Blocks
  // likewise.
  absl::Status CollectGarbage();
  // Deletes a database that was set aside. False: there is none.
  bool DropSetAside();
  // Makes a compaction that runs, and any later one, return early.
  void StopCompactions() { stop_compactions_ = true; }

  // Looks at the disk; leaves the degraded mode where the cause is gone.
  void Housekeep();
  bool degraded() const;

  DiskSpace& space() { return space_; }
  // Of the blob files, dead bytes included.
  int64_t BlobBytes() const;
  // Adds this database's figures.
  void AddStats(DiskStats* stats) const;

 private:
  // An open RocksDB; closed when nobody uses it any more.
  using Live = std::shared_ptr<rocksdb::DB>;
  // What ends the degraded mode, the stronger the later.
  enum class Cure { kResume, kReopen, kStartAnew, kRepair };

  Database(const DatabaseOptions& options, const DatabaseResources& resources,
           DiskSpace& space);
  // `is_new` becomes true where what was there had to be set aside.
  absl::Status OpenKind(bool* is_new);
  absl::Status OpenSessions();
  absl::Status OpenPages();
  // What both begin with; `ledger` may be null.
  absl::Status Prepare(SyncLedger* ledger);
  absl::StatusOr<Live> OpenRocksDb();
  // The last step of making one: without it, the next start begins anew.
  absl::Status WriteFormat(rocksdb::DB& db, const Format& format);
  absl::Status SetAside(const absl::Status& why);
  void Publish(Live live);
  // UNAVAILABLE: it is being opened again.
  absl::StatusOr<Live> Acquire() const;
  // Closes the database and opens it again. False: not yet.
  bool Reopen(Cure cure);
  // False, and writing stops: the folder is not the one that was opened.
  bool CheckFolder();
  int64_t Property(const std::string& name) const;
  absl::Status Compact(double blob_cutoff);
  // Called on RocksDB's threads: only notes what happened.
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason,
                         rocksdb::Status* error) override;
  void Degrade(const rocksdb::Status& error);
  void Degrade(const std::string& reason, Cure cure);

  const DatabaseOptions options_;
  const std::string path_;
  DiskSpace& space_;
  const DatabaseResources resources_;
  // Null: of pages none is kept.
  std::unique_ptr<SyncLedger> ledger_;
  std::unique_ptr<rocksdb::Env> env_;
  rocksdb::Options rocksdb_options_;
  uint64_t folder_inode_ = 0;
  std::atomic<bool> stop_compactions_{false};
  std::atomic<int64_t> num_compactions_{0};
  bool has_torn_log_ = false;
  std::chrono::steady_clock::time_point next_reopen_;  // Housekeep's

  mutable Mutex mu_;
  Live live_ XC_GUARDED_BY(mu_);
  std::weak_ptr<void> pin_ XC_GUARDED_BY(mu_);  // lives while files are pinned
  // Writes have stopped; empty: they have not.
  std::string degraded_ XC_GUARDED_BY(mu_);
  Cure cure_ XC_GUARDED_BY(mu_) = Cure::kResume;
  int64_t degraded_total_ XC_GUARDED_BY(mu_) = 0;
  int64_t background_errors_ XC_GUARDED_BY(mu_) = 0;
  int64_t num_set_aside_ XC_GUARDED_BY(mu_) = 0;
};

// What Open() sets, for a repair to open damaged databases alike.
rocksdb::Options MakeRocksDbOptions(DatabaseKind kind,
                                    const DatabaseResources& resources,
                                    const DiskPlan& plan,
                                    const std::string& path);

// Calls fn(key, value) for what can be read between two keys, also behind
// damage: from both ends, so perhaps twice. It skips what `options` says.
rocksdb::Status ForEach(
    rocksdb::Iterator& it,
    const std::function<void(std::string_view, std::string_view)>& fn);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_DATABASE_H_
