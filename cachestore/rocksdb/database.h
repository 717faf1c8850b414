// The one RocksDB of a store: opened with bounded memory and bounded disk, its
// errors mapped, its degraded mode. It knows families of keys and no record but
// the one that holds the format version.
#ifndef XCACHE_CACHESTORE_ROCKSDB_DATABASE_H_
#define XCACHE_CACHESTORE_ROCKSDB_DATABASE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/store_stats.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "rocksdb/db.h"
#include "rocksdb/options.h"
#include "rocksdb/write_batch.h"

namespace xcache {

// Column families. Names: FORMAT.md.
enum class Family { kMeta, kPages, kPageIndex, kSessions, kSessionIndex };
inline constexpr size_t kNumFamilies = 5;
inline constexpr std::array<Family, kNumFamilies> kFamilies = {
    Family::kMeta, Family::kPages, Family::kPageIndex, Family::kSessions,
    Family::kSessionIndex};
std::string_view FamilyName(Family family);

// A key that every family but kMeta holds from the start (FORMAT.md). Scans
// skip it.
std::string_view FamilyMarker();

struct StoreDbOptions {
  std::string dir;  // the store's; RocksDB has the subfolder "db"
  int64_t disk_bytes = 0;
  int64_t min_free_bytes = 0;
  int64_t rocksdb_bytes = 0;
  int64_t compaction_bytes_per_s = 0;
  rocksdb::Env* env = nullptr;
  std::string subfolder = "db";
};

// "what: message", on one line, with the canonical code. Corrupt: DATA_LOSS.
absl::Status FromRocksDb(const rocksdb::Status& status, std::string_view what);

class StoreDb {
 public:
  // Errors: as CacheStore::Open. The memory is reserved in `budget`, which must
  // outlive the database.
  static absl::StatusOr<std::unique_ptr<StoreDb>> Open(
      const StoreDbOptions& options, MemoryBudget& budget);
  ~StoreDb();

  // NOT_FOUND, DATA_LOSS (and the value is to be dropped).
  absl::Status Get(Family family, std::string_view key, std::string* value);

  enum class Room {
    kPage,    // refused first
    kRecord,  // may use what pages may not
    kFrees,   // makes room: always admitted
  };
  // Writes the batch, atomically; with `sync`, it and all that was written
  // before it is on disk when this returns OK. RESOURCE_EXHAUSTED: no room.
  // UNAVAILABLE: writes have stopped after an error, or fail now.
  absl::Status Write(rocksdb::WriteBatch& batch, bool sync, Room room);

  std::unique_ptr<rocksdb::Iterator> NewIterator(Family family);
  rocksdb::ColumnFamilyHandle* handle(Family family) const {
    return handles_[static_cast<size_t>(family)];
  }

  // Moves what lives in the oldest blob files and deletes these files. Blocks
  // for as long as it takes, or until StopCompactions().
  absl::Status CollectGarbage();
  // Makes a CollectGarbage that runs, and any later one, return early.
  void StopCompactions() { stop_compactions_ = true; }

  // Looks at the disk; leaves the degraded mode where that is possible.
  void Housekeep();
  bool degraded() const;

  DiskSpace& space() { return *space_; }
  // Of the blob files, dead bytes included.
  int64_t BlobBytes() const;
  DiskStats stats() const;

 private:
  class Listener;

  StoreDb() = default;
  absl::Status OpenRocksDb(const std::string& path,
                           const std::vector<std::string>& families);
  // Makes what a new store needs, the format record last.
  absl::Status Create();
  void AddListener();
  void Degrade(const std::string& reason);
  int64_t Property(Family family, const std::string& name) const;
  int64_t PropertyOfAll(const std::string& name) const;

  std::string dir_;
  MemoryReservation memory_;
  std::unique_ptr<DiskSpace> space_;
  // Null where none is kept: the database of a repair.
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<rocksdb::Env> env_;
  rocksdb::Options options_;
  std::shared_ptr<rocksdb::Cache> cache_;
  std::unique_ptr<rocksdb::DB> db_;
  std::array<rocksdb::ColumnFamilyHandle*, kNumFamilies> handles_{};
  std::atomic<bool> stop_compactions_{false};
  std::atomic<int64_t> num_compactions_{0};
  bool has_torn_log_ = false;

  mutable Mutex mu_;
  // Writes have stopped; empty: they have not.
  std::string degraded_ XC_GUARDED_BY(mu_);
  int64_t degraded_total_ XC_GUARDED_BY(mu_) = 0;
  int64_t background_errors_ XC_GUARDED_BY(mu_) = 0;
};

// What Open() sets, for Repair() to open damaged databases alike.
rocksdb::Options MakeRocksDbOptions(const StoreDbOptions& options,
                                    const DiskPlan& plan,
                                    std::shared_ptr<rocksdb::Cache> cache);
rocksdb::ColumnFamilyOptions MakeFamilyOptions(const rocksdb::Options& options,
                                               const DiskPlan& plan,
                                               Family family);
std::vector<rocksdb::ColumnFamilyDescriptor> DescribeFamilies(
    const rocksdb::Options& options, const DiskPlan& plan,
    const std::vector<std::string>& names);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_DATABASE_H_
