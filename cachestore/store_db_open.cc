// How the RocksDB of a store is opened: the folder, the options, the families,
// the version, and a log whose tail was torn by a power loss.
#include <fcntl.h>
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
#include "cachestore/coding.h"
#include "cachestore/store_db.h"
#include "cachestore/store_records.h"
#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/cache.h"
#include "rocksdb/env.h"
#include "rocksdb/filter_policy.h"
#include "rocksdb/rate_limiter.h"
#include "rocksdb/statistics.h"
#include "rocksdb/table.h"
#include "rocksdb/write_buffer_manager.h"

namespace xcache {
namespace {

constexpr char kFormatKey[] = "format";
constexpr char kFormatName[] = "xcache-store";

constexpr std::array<Family, kNumFamilies> kFamilies = {
    Family::kMeta, Family::kPages, Family::kPageIndex, Family::kSessions,
    Family::kSessionIndex};

std::string FormatRecord() {
  std::string out;
  FieldWriter w(out);
  w.Bytes(kFormatName);
  w.Int(kStoreFormatVersion);
  w.Int(Crc32c(out));
  return out;
}

absl::Status WouldNotOpen(const std::string& dir, const absl::Status& why) {
  return absl::DataLossError(
      absl::StrCat("store ", dir, " would not open: ", why.message(),
                   "; --repair-store keeps every record in it that is whole"));
}

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

enum class FolderState { kNew, kStore, kDamaged };

// A folder without CURRENT is new, unless something has lost its CURRENT.
FolderState StateOf(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(path + "/CURRENT", error)) return FolderState::kStore;
  for (const auto& file : fs::directory_iterator(path, error)) {
    const auto extension = file.path().extension();
    if (extension == ".sst" || extension == ".blob" ||
        (extension == ".log" && file.file_size(error) > 0)) {
      return FolderState::kDamaged;
    }
  }
  return FolderState::kNew;
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

std::string_view FamilyName(Family family) {
  switch (family) {
    case Family::kMeta:
      return "default";
    case Family::kPages:
      return "pages";
    case Family::kPageIndex:
      return "page_index";
    case Family::kSessions:
      return "sessions";
    case Family::kSessionIndex:
      return "session_index";
  }
  return "";
}

// No page key has this length, and no session key says a tenant of 255 bytes
// and then ends.
std::string_view FamilyMarker() {
  return "\xff"
         "family";
}

rocksdb::Options MakeRocksDbOptions(const StoreDbOptions& options,
                                    const DiskPlan& plan,
                                    std::shared_ptr<rocksdb::Cache> cache) {
  rocksdb::Options o;
  if (options.env != nullptr) o.env = options.env;
  o.create_if_missing = true;
  o.paranoid_checks = true;
  // A torn last record is what kill -9 leaves behind. Damage before intact
  // records is not, and must not go unnoticed: OpenRocksDb().
  o.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // A synced log that is missing is found out.
  o.track_and_verify_wals_in_manifest = true;

  // Memory. Memtables are charged to the cache, so the cache is the cap.
  o.write_buffer_manager = std::make_shared<rocksdb::WriteBufferManager>(
      static_cast<size_t>(options.rocksdb_bytes / 2), cache);
  o.write_buffer_size = static_cast<size_t>(plan.write_buffer);
  o.max_write_buffer_number = 2;
  o.arena_block_size =
      static_cast<size_t>(std::min<int64_t>(plan.write_buffer / 8, 256 << 10));
  o.max_open_files = 256;
  o.table_cache_numshardbits = 2;

  // Disk. Files are as long as what is in them, and logs of RocksDB's own stay
  // small: the cap counts them.
  o.allow_fallocate = false;
  o.max_total_wal_size = static_cast<uint64_t>(plan.max_wal);
  o.manifest_preallocation_size = 0;
  o.max_manifest_file_size = 1 << 20;
  o.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  o.max_log_file_size = 256 << 10;
  o.keep_log_file_num = 2;
  o.stats_dump_period_sec = 0;
  o.stats_persist_period_sec = 0;

  // One flush and one compaction at a time: the service needs the cores.
  o.max_background_jobs = 2;
  if (options.compaction_bytes_per_s > 0) {
    o.rate_limiter.reset(
        rocksdb::NewGenericRateLimiter(options.compaction_bytes_per_s));
  }
  o.bytes_per_sync = 1 << 20;
  o.statistics = rocksdb::CreateDBStatistics();
  o.statistics->set_stats_level(rocksdb::StatsLevel::kExceptDetailedTimers);

  rocksdb::BlockBasedTableOptions table;
  table.block_cache = std::move(cache);
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  table.checksum = rocksdb::ChecksumType::kXXH3;
  o.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  o.compression = rocksdb::CompressionType::kNoCompression;
  return o;
}

rocksdb::ColumnFamilyOptions MakeFamilyOptions(const rocksdb::Options& options,
                                               const DiskPlan& plan,
                                               Family family) {
  rocksdb::ColumnFamilyOptions cf(options);
  if (family == Family::kSessions) {
    cf.compression = rocksdb::CompressionType::kLZ4Compression;
  }
  if (family != Family::kPages) return cf;
  cf.enable_blob_files = true;
  cf.min_blob_size = 1024;
  cf.blob_file_size = static_cast<uint64_t>(plan.write_buffer);
  // Codes are dense: nothing to be gained.
  cf.blob_compression_type = rocksdb::CompressionType::kNoCompression;
  cf.enable_blob_garbage_collection = true;
  cf.blob_garbage_collection_age_cutoff = plan.gc_cutoff;
  cf.blob_garbage_collection_force_threshold = 0.5;
  return cf;
}

absl::StatusOr<std::unique_ptr<StoreDb>> StoreDb::Open(
    const StoreDbOptions& options, MemoryBudget& budget) {
  XC_RETURN_IF_ERROR(MakeFolder(options.dir));
  const std::string path = absl::StrCat(options.dir, "/", options.subfolder);
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
  const DiskPlan plan = PlanDisk(options.disk_bytes, options.rocksdb_bytes);
  store->space_ =
      std::make_unique<DiskSpace>(options.dir, plan, options.min_free_bytes);
  rocksdb::LRUCacheOptions cache;
  cache.capacity = static_cast<size_t>(options.rocksdb_bytes);
  cache.num_shard_bits = 2;
  store->cache_ = rocksdb::NewLRUCache(cache);
  store->options_ = MakeRocksDbOptions(options, plan, store->cache_);
  store->AddListener();

  rocksdb::Env* env = store->options_.env;
  if (IsLocked(env, path)) return InUse(options.dir);
  const FolderState state = StateOf(path);
  if (state == FolderState::kDamaged) {
    return WouldNotOpen(options.dir,
                        absl::DataLossError("the file CURRENT is missing"));
  }
  std::vector<std::string> families = {"default"};
  if (state == FolderState::kStore) {
    families.clear();
    const rocksdb::Status listed =
        rocksdb::DB::ListColumnFamilies(store->options_, path, &families);
    if (!listed.ok()) {
      return WouldNotOpen(options.dir, FromRocksDb(listed, "MANIFEST"));
    }
  }
  XC_RETURN_IF_ERROR(store->OpenRocksDb(path, families));
  XC_RETURN_IF_ERROR(store->CheckOrCreate(path, state == FolderState::kNew));
  store->space_->Scan();
  return store;
}

namespace {

struct OpenedFamilies {
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
};

OpenedFamilies Describe(const rocksdb::Options& options, const DiskPlan& plan,
                        const std::vector<std::string>& names) {
  OpenedFamilies out;
  for (const std::string& name : names) {
    rocksdb::ColumnFamilyOptions cf(options);
    for (Family family : kFamilies) {
      if (FamilyName(family) == name) {
        cf = MakeFamilyOptions(options, plan, family);
      }
    }
    out.descriptors.emplace_back(name, cf);
  }
  return out;
}

// The last sequence number that a way of reading the log comes to; 0: it fails.
uint64_t LastSequence(rocksdb::Options options, const DiskPlan& plan,
                      const std::string& path,
                      const std::vector<std::string>& families,
                      rocksdb::WALRecoveryMode mode) {
  options.wal_recovery_mode = mode;
  options.listeners.clear();
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  if (!rocksdb::DB::OpenForReadOnly(
           options, path, Describe(options, plan, families).descriptors,
           &handles, &db)
           .ok()) {
    return 0;
  }
  const uint64_t last = db->GetLatestSequenceNumber();
  for (auto* handle : handles) db->DestroyColumnFamilyHandle(handle);
  delete db;
  return last;
}

}  // namespace

absl::Status StoreDb::OpenRocksDb(const std::string& path,
                                  const std::vector<std::string>& families) {
  using Mode = rocksdb::WALRecoveryMode;
  const DiskPlan& plan = space_->plan();
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  auto open = [&] {
    return rocksdb::DB::Open(options_, path,
                             Describe(options_, plan, families).descriptors,
                             &handles, &db);
  };
  rocksdb::Status status = open();
  if (status.IsCorruption()) {
    // A power loss may leave rubbish behind what was synced. If no intact
    // record follows the damage, that is what it is, and nothing that was
    // acknowledged is lost.
    const uint64_t before = LastSequence(options_, plan, path, families,
                                         Mode::kPointInTimeRecovery);
    const uint64_t beyond = LastSequence(options_, plan, path, families,
                                         Mode::kSkipAnyCorruptedRecords);
    if (before != 0 && before == beyond) {
      XC_LOG_WARN("the log of the store has a torn end", "dir={} detail={}",
                  LogValue(dir_), LogValue(status.ToString()));
      options_.wal_recovery_mode = Mode::kPointInTimeRecovery;
      status = open();
    }
  }
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
  for (size_t i = 0; i < handles.size(); ++i) {
    bool known = false;
    for (Family family : kFamilies) {
      if (FamilyName(family) == handles[i]->GetName()) {
        handles_[static_cast<size_t>(family)] = handles[i];
        known = true;
      }
    }
    if (!known) other_handles_.push_back(handles[i]);
  }
  return absl::OkStatus();
}

absl::Status StoreDb::CheckOrCreate(const std::string& path, bool is_new) {
  std::string record;
  const rocksdb::Status got =
      db_->Get({}, handle(Family::kMeta), kFormatKey, &record);
  if (got.ok()) {
    FieldReader r(record);
    const std::string_view name = r.Bytes();
    const auto version = r.Int<uint32_t>();
    const auto crc = r.Int<uint32_t>();
    if (!r.ok() || name != kFormatName ||
        crc != Crc32c(std::string_view(record).substr(
                   0, record.size() - sizeof(crc)))) {
      return WouldNotOpen(dir_, absl::DataLossError("bad format record"));
    }
    if (version != kStoreFormatVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat("store ", dir_, " has format version ", version,
                       ", this program reads version ", kStoreFormatVersion));
    }
    for (Family family : kFamilies) {
      if (handle(family) == nullptr) {
        return WouldNotOpen(
            dir_,
            absl::DataLossError(absl::StrCat(
                "column family ", FamilyName(family).data(), " is missing")));
      }
    }
    return absl::OkStatus();
  }
  if (!got.IsNotFound()) return WouldNotOpen(dir_, FromRocksDb(got, "format"));

  // New, or its making was interrupted: then it holds nothing yet.
  if (!is_new) {
    std::unique_ptr<rocksdb::Iterator> it(
        db_->NewIterator({}, handle(Family::kMeta)));
    it->SeekToFirst();
    if (it->Valid() || !other_handles_.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, " holds a RocksDB that is not a store of XCache"));
    }
  }
  for (Family family : kFamilies) {
    auto& family_handle = handles_[static_cast<size_t>(family)];
    if (family_handle == nullptr) {
      const rocksdb::Status created = db_->CreateColumnFamily(
          MakeFamilyOptions(options_, space_->plan(), family),
          std::string(FamilyName(family)), &family_handle);
      if (!created.ok()) return FromRocksDb(created, "new store " + dir_);
    }
    if (family == Family::kMeta) continue;
    // RocksDB's repair knows a family by the files that it has: give it one.
    rocksdb::Status marked =
        db_->Put({}, family_handle, std::string(FamilyMarker()), "");
    if (marked.ok()) marked = db_->Flush({}, family_handle);
    if (!marked.ok()) return FromRocksDb(marked, "new store " + dir_);
  }
  rocksdb::WriteOptions synced;
  synced.sync = true;
  const rocksdb::Status written =
      db_->Put(synced, handle(Family::kMeta), kFormatKey, FormatRecord());
  if (!written.ok()) return FromRocksDb(written, "new store " + dir_);
  return absl::OkStatus();
}

}  // namespace xcache
