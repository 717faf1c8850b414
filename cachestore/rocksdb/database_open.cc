// How the RocksDB of a store is opened: the folder, a look at what is in it,
// and what a new one needs.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/file_system.h"
#include "cachestore/rocksdb/open_check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/cache.h"
#include "rocksdb/env.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

absl::Status ErrnoStatus(int error, const std::string& what) {
  const std::string message = absl::StrCat(what, ": ", std::strerror(error));
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::FailedPreconditionError(message);
  }
}

// Makes the folder, for its owner alone.
absl::Status MakeFolder(const std::string& dir) {
  std::error_code error;
  const auto parent = std::filesystem::path(dir).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, error);
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("cannot make folder ", dir));
  }
  struct stat st;
  if (::stat(dir.c_str(), &st) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot read folder ", dir));
  }
  if (!S_ISDIR(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(dir, " is not a folder"));
  }
  if (::access(dir.c_str(), R_OK | W_OK | X_OK) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot use folder ", dir));
  }
  return absl::OkStatus();
}

// A repair that was cut off between its two renames is finished here.
void FinishRepair(const std::string& dir, const std::string& path) {
  std::error_code error;
  const std::string fresh = dir + "/db.new";
  if (fs::exists(path, error) || !fs::exists(fresh, error)) return;
  fs::rename(fresh, path, error);
}

// What a repair left that was cut off before them. REQUIRES: none runs.
void RemoveRepairLeftovers(const std::string& dir) {
  std::error_code error;
  fs::remove_all(dir + "/db.new", error);
  fs::remove_all(dir + "/repair-scratch", error);
}

// Whether another process, or another store of this one, has it open.
bool IsLocked(rocksdb::Env* env, const std::string& path) {
  rocksdb::FileLock* lock = nullptr;
  if (!env->LockFile(path + "/LOCK", &lock).ok()) return true;
  env->UnlockFile(lock);
  return false;
}

absl::Status InUse(const std::string& dir) {
  return absl::FailedPreconditionError(
      absl::StrCat("store ", dir, " is in use by another process"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<StoreDb>> StoreDb::Open(
    const StoreDbOptions& options, MemoryBudget& budget) {
  XC_RETURN_IF_ERROR(MakeFolder(options.dir));
  const std::string path = absl::StrCat(options.dir, "/", options.subfolder);
  FinishRepair(options.dir, path);
  XC_RETURN_IF_ERROR(MakeFolder(path));
  // Whatever the mode of a folder that was there before, ours is private.
  if (::chmod(path.c_str(), 0700) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot set the mode of ", path));
  }

  // Beside the cache: buffers of the log, of a flush and of a compaction, each
  // at most about a megabyte.
  constexpr int64_t kBuffers = 4 << 20;
  auto memory =
      budget.Reserve(MemoryAccount::kRocksDb, options.rocksdb_bytes + kBuffers);
  if (!memory) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "store ", options.dir, ": RocksDB needs ",
        options.rocksdb_bytes + kBuffers, " bytes of memory, ",
        budget.used_bytes(), " of ", budget.cap_bytes(), " are in use"));
  }

  auto store = std::unique_ptr<StoreDb>(new StoreDb());
  store->dir_ = options.dir;
  store->memory_ = *std::move(memory);
  // A cap that the file system cannot hold would make memtables that it cannot
  // hold either: RocksDB writes again, after a full disk, only where one fits.
  const int64_t total = FileSystemOf(options.dir).total;
  const DiskPlan plan = PlanDisk(
      total > 0 ? std::min(options.disk_bytes, total) : options.disk_bytes,
      options.rocksdb_bytes);
  store->space_ =
      std::make_unique<DiskSpace>(options.dir, plan, options.min_free_bytes);
  rocksdb::LRUCacheOptions cache;
  cache.capacity = static_cast<size_t>(options.rocksdb_bytes);
  cache.num_shard_bits = 2;
  store->cache_ = rocksdb::NewLRUCache(cache);
  store->options_ = MakeRocksDbOptions(options, plan, store->cache_);
  const bool is_main = options.subfolder == "db";
  if (is_main) store->ledger_ = std::make_unique<Ledger>(options.dir);
  store->env_ = MakeStoreEnv(options.env, store->ledger_.get());
  store->options_.env = store->env_.get();
  store->AddListener();

  rocksdb::Env* env = store->options_.env;
  if (IsLocked(env, path)) return InUse(options.dir);
  if (is_main) RemoveRepairLeftovers(options.dir);
  XC_RETURN_IF_ERROR(CheckRoomToOpen(options.dir, path));
  const std::optional<LedgerRecord> ledger =
      is_main ? ReadLedger(options.dir) : std::nullopt;
  XC_ASSIGN_OR_RETURN(
      const StoreLook look,
      LookAtStore(options.dir, path, store->options_, plan, ledger));
  store->options_.wal_recovery_mode = look.recovery_mode;
  store->has_torn_log_ = look.has_torn_log;
  // Opening makes a new MANIFEST: of that, too, a ledger is to know.
  if (ledger) XC_RETURN_IF_ERROR(store->ledger_->Start(ledger));
  XC_RETURN_IF_ERROR(store->OpenRocksDb(path, look.families));
  if (look.is_empty) XC_RETURN_IF_ERROR(store->Create());
  if (is_main) {
    // What was in the log is in synced tables now.
    store->ledger_->LogSynced(store->db_->GetLatestSequenceNumber());
    // From here on it is a store, and one that is gone would be missed.
    if (!ledger) XC_RETURN_IF_ERROR(store->ledger_->Start(std::nullopt));
  }
  store->space_->Scan();
  return store;
}

absl::Status StoreDb::OpenRocksDb(const std::string& path,
                                  const std::vector<std::string>& families) {
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(
      options_, path, DescribeFamilies(options_, space_->plan(), families),
      &handles, &db);
  if (!status.ok()) {
    const absl::Status mapped = FromRocksDb(status, "RocksDB");
    if (status.IsNoSpace()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("store ", dir_, ": ", mapped.message()));
    }
    if (absl::StrContains(status.ToString(), "LOCK")) return InUse(dir_);
    return WouldNotOpen(dir_, mapped);
  }
  db_.reset(db);
  for (rocksdb::ColumnFamilyHandle* opened : handles) {
    for (Family family : kFamilies) {
      if (FamilyName(family) == opened->GetName()) {
        handles_[static_cast<size_t>(family)] = opened;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status StoreDb::Create() {
  const auto failed = [this](const rocksdb::Status& status) {
    return FromRocksDb(status, "cannot make store " + dir_);
  };
  for (Family family : kFamilies) {
    auto& family_handle = handles_[static_cast<size_t>(family)];
    if (family_handle == nullptr) {
      const rocksdb::Status created = db_->CreateColumnFamily(
          MakeFamilyOptions(options_, space_->plan(), family),
          std::string(FamilyName(family)), &family_handle);
      if (!created.ok()) return failed(created);
    }
    if (family == Family::kMeta) continue;
    // RocksDB's repair knows a family by the files that it has: give it one.
    rocksdb::Status marked =
        db_->Put({}, family_handle, std::string(FamilyMarker()), "");
    if (marked.ok()) marked = db_->Flush({}, family_handle);
    if (!marked.ok()) return failed(marked);
  }
  // The last step: without it, the next start begins anew.
  rocksdb::WriteOptions synced;
  synced.sync = true;
  const rocksdb::Status written =
      db_->Put(synced, handle(Family::kMeta), FormatKey(), FormatRecord());
  return written.ok() ? absl::OkStatus() : failed(written);
}

}  // namespace xcache
