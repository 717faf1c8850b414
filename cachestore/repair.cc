// CacheStore::Repair: what is whole in a damaged store goes into a new one,
// which then takes its place. The damaged one is only read: RocksDB's own
// repair runs on a copy (and as it forgets every blob file, pages are then
// taken from the blob files themselves).
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/blob_salvage.h"
#include "cachestore/cache_store.h"
#include "cachestore/store_db.h"
#include "cachestore/store_look.h"
#include "cachestore/store_options.h"
#include "cachestore/store_records.h"
#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/cache.h"
#include "rocksdb/env.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

// Memory for the databases that a repair opens; nothing else runs meanwhile.
constexpr int64_t kRepairMemory = 256 << 20;

absl::Status FileStatus(const std::error_code& error, const std::string& what) {
  if (!error) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", error.message());
  if (error == std::errc::no_space_on_device) {
    return absl::ResourceExhaustedError(message);
  }
  return absl::UnavailableError(message);
}

// The files of `from` in `to`: linked where RocksDB never changes them in
// place, else copied.
absl::Status CopyDatabase(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::create_directories(to, error);
  XC_RETURN_IF_ERROR(FileStatus(error, "cannot make " + to.string()));
  for (const auto& file : fs::directory_iterator(from, error)) {
    const fs::path name = file.path().filename();
    const fs::path extension = name.extension();
    if (!file.is_regular_file(error) || name == "LOCK" ||
        absl::StartsWith(name.string(), "LOG")) {
      continue;
    }
    if (extension == ".sst" || extension == ".blob" || extension == ".log") {
      fs::create_hard_link(file.path(), to / name, error);
      if (!error) continue;
    }
    fs::copy_file(file.path(), to / name, error);
    XC_RETURN_IF_ERROR(FileStatus(error, "cannot copy " + name.string()));
  }
  return FileStatus(error, "cannot read " + from.string());
}

// A damaged database, read as far as it goes.
class Source {
 public:
  ~Source() {
    if (db_ == nullptr) return;
    for (auto* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  }

  // Whether RocksDB opens it as it is, apart from a damaged log.
  bool Open(rocksdb::Options options, const std::string& path) {
    options.create_if_missing = false;
    options.paranoid_checks = false;
    options.wal_recovery_mode =
        rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
    std::vector<std::string> names;
    if (!rocksdb::DB::ListColumnFamilies(options, path, &names).ok()) {
      return false;
    }
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const std::string& name : names) {
      families.emplace_back(name, rocksdb::ColumnFamilyOptions(options));
    }
    rocksdb::DB* db = nullptr;
    const rocksdb::Status opened =
        rocksdb::DB::OpenForReadOnly(options, path, families, &handles_, &db);
    if (!opened.ok()) {
      XC_LOG_WARN("the store does not open as it is", "path={} detail={}",
                  LogValue(path), LogValue(opened.ToString()));
      return false;
    }
    db_.reset(db);
    return true;
  }
  bool is_open() const { return db_ != nullptr; }

  rocksdb::ColumnFamilyHandle* Handle(Family family) const {
    for (auto* handle : handles_) {
      if (handle->GetName() == FamilyName(family)) return handle;
    }
    return nullptr;
  }

  // Adds the keys of a family that can be read, from both ends. False: there is
  // damage between.
  bool AddKeys(Family family, std::set<std::string>& keys) const {
    rocksdb::ColumnFamilyHandle* handle = Handle(family);
    if (handle == nullptr) return false;
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(
        db_->NewIterator(options, handle));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      keys.insert(it->key().ToString());
    }
    if (it->status().ok()) return true;
    for (it->SeekToLast(); it->Valid(); it->Prev()) {
      keys.insert(it->key().ToString());
    }
    return false;
  }

  bool Get(Family family, const std::string& key, std::string* value) const {
    rocksdb::ColumnFamilyHandle* handle = Handle(family);
    if (handle == nullptr) return false;
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    return db_->Get(options, handle, key, value).ok();
  }

 private:
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
};

class Repairer {
 public:
  Repairer(const CacheStoreOptions& options, const fs::path& dir)
      : dir_(dir), db_options_(DbOptions(options, kRepairMemory)) {
    // For a while everything is there twice.
    db_options_.disk_bytes = 4 * options.disk_bytes;
  }

  absl::StatusOr<CacheStore::RepairReport> Run() {
    const fs::path scratch = dir_ / "repair-scratch";
    const fs::path fresh = dir_ / "db.new";
    std::error_code error;
    fs::remove_all(scratch, error);
    fs::remove_all(fresh, error);
    XC_RETURN_IF_ERROR(CopyDatabase(dir_ / "db", scratch));
    OpenSource(scratch.string());
    {
      db_options_.subfolder = "db.new";
      XC_ASSIGN_OR_RETURN(target_, StoreDb::Open(db_options_, budget_));
      XC_RETURN_IF_ERROR(CopySessions());
      CopyPages();
      if (needs_salvage_) SalvagePages();
      // One sync, and everything is down.
      rocksdb::WriteBatch last;
      last.Delete(target_->handle(Family::kPages),
                  rocksdb::Slice("no such page"));
      XC_RETURN_IF_ERROR(
          target_->Write(last, /*sync=*/true, StoreDb::Room::kFrees));
      target_.reset();
    }
    source_ = nullptr;
    XC_RETURN_IF_ERROR(Swap(fresh));
    fs::remove_all(scratch, error);
    return report_;
  }

 private:
  void OpenSource(const std::string& path) {
    const DiskPlan plan =
        PlanDisk(db_options_.disk_bytes, db_options_.rocksdb_bytes);
    rocksdb::Options options =
        MakeRocksDbOptions(db_options_, plan, rocksdb::NewLRUCache(8 << 20));
    source_ = std::make_unique<Source>();
    if (source_->Open(options, path)) return;
    needs_salvage_ = true;
    // Values that it takes from the log stay in its tables: it would forget
    // blob files that it wrote, as it does all others.
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (Family family : kFamilies) {
      families.emplace_back(std::string(FamilyName(family)),
                            rocksdb::ColumnFamilyOptions(options));
    }
    const rocksdb::Status repaired = rocksdb::RepairDB(
        path, options, families, rocksdb::ColumnFamilyOptions(options));
    if (!repaired.ok()) {
      XC_LOG_WARN("RocksDB's repair failed", "path={} detail={}",
                  LogValue(path), LogValue(repaired.ToString()));
    }
    source_ = std::make_unique<Source>();
    source_->Open(options, path);
  }

  absl::Status CopySessions() {
    if (!source_->is_open()) return absl::OkStatus();
    std::set<std::string> keys;
    source_->AddKeys(Family::kSessions, keys);
    source_->AddKeys(Family::kSessionIndex, keys);
    for (const std::string& key : keys) {
      if (!ParseSessionKey(key)) continue;  // the family's marker
      std::string value;
      std::string entry;
      if (source_->Get(Family::kSessions, key, &value)) {
        const auto record = DecodeSessionRecord(value);
        if (record.ok() && SessionKey(record->tenant, record->id) == key) {
          entry = EncodeSessionEntry(MakeSessionEntry(*record));
        } else if (absl::IsFailedPrecondition(record.status())) {
          // Another version's: not ours to judge.
          source_->Get(Family::kSessionIndex, key, &entry);
        }
      }
      if (entry.empty()) {
        ++report_.sessions_dropped;
        continue;
      }
      rocksdb::WriteBatch batch;
      batch.Put(target_->handle(Family::kSessions), key, value);
      batch.Put(target_->handle(Family::kSessionIndex), key, entry);
      XC_RETURN_IF_ERROR(
          target_->Write(batch, /*sync=*/false, StoreDb::Room::kRecord));
      ++report_.sessions_kept;
    }
    return absl::OkStatus();
  }

  void CopyPages() {
    if (!source_->is_open()) return;
    std::set<std::string> keys;
    if (!source_->AddKeys(Family::kPageIndex, keys)) needs_salvage_ = true;
    for (const std::string& name : keys) {
      const auto key = ParseKeyBytes(name);
      if (!key) continue;  // the family's marker
      std::string value;
      const auto trailer =
          source_->Get(Family::kPages, name, &value)
              ? CheckPageValue(*key, value)
              : absl::StatusOr<PageTrailer>(absl::NotFoundError(""));
      if (trailer.ok()) {
        value.resize(trailer->page_bytes);
        PutPage(*key, trailer->parent, value);
      } else {
        lost_pages_.insert(*key);
      }
    }
    report_.pages_dropped = static_cast<int64_t>(lost_pages_.size());
  }

  void SalvagePages() {
    std::error_code error;
    for (const auto& file : fs::directory_iterator(dir_ / "db", error)) {
      if (file.path().extension() != ".blob") continue;
      std::ifstream in(file.path(), std::ios::binary);
      const std::string bytes((std::istreambuf_iterator<char>(in)), {});
      SalvageBlobFile(
          bytes, [this](const PageKey& key, const PageKey& parent,
                        std::string_view page) { PutPage(key, parent, page); });
    }
    report_.pages_dropped = static_cast<int64_t>(lost_pages_.size());
  }

  // Pages are a cache: one that finds no room is no failure.
  void PutPage(const PageKey& key, const PageKey& parent,
               std::string_view page) {
    if (!kept_pages_.insert(key).second) return;
    const std::string name(KeyBytes(key));
    rocksdb::WriteBatch batch;
    batch.Put(target_->handle(Family::kPages), name,
              absl::StrCat(absl::string_view(page.data(), page.size()),
                           EncodePageTrailer(key, parent, page)));
    batch.Put(
        target_->handle(Family::kPageIndex), name,
        EncodePageEntry(key, {.parent = parent,
                              .num_bytes = static_cast<uint32_t>(page.size()),
                              .crc = Crc32c(page)}));
    if (target_->Write(batch, /*sync=*/false, StoreDb::Room::kPage).ok()) {
      lost_pages_.erase(key);
      ++report_.pages_kept;
    } else {
      lost_pages_.insert(key);
    }
  }

  // `fresh` becomes the database. At no instant is there neither: StoreDb::Open
  // finds a `db.new` without a `db`.
  absl::Status Swap(const fs::path& fresh) {
    std::error_code error;
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(
            std::chrono::system_clock::now().time_since_epoch())
            .count();
    fs::create_directories(dir_ / "lost", error);
    fs::path lost = dir_ / "lost" / std::to_string(seconds);
    for (int i = 1; fs::exists(lost, error); ++i) {
      lost = dir_ / "lost" / absl::StrCat(seconds, "-", i);
    }
    // The new database counts its records anew.
    RemoveLedger(dir_.string());
    fs::rename(dir_ / "db", lost, error);
    XC_RETURN_IF_ERROR(FileStatus(error, "cannot move the old database"));
    fs::rename(fresh, dir_ / "db", error);
    XC_RETURN_IF_ERROR(FileStatus(error, "cannot move the new database"));
    // The pages that were whole are in the new one; the old ones would take
    // their room once more.
    std::vector<fs::path> blobs;
    for (const auto& file : fs::directory_iterator(lost, error)) {
      if (file.path().extension() == ".blob") blobs.push_back(file.path());
    }
    for (const fs::path& blob : blobs) fs::remove(blob, error);
    return absl::OkStatus();
  }

  const fs::path dir_;
  StoreDbOptions db_options_;
  MemoryBudget budget_{kRepairMemory};
  std::unique_ptr<Source> source_;
  std::unique_ptr<StoreDb> target_;
  // Whether pages may be there that no index leads to.
  bool needs_salvage_ = false;
  std::set<PageKey> kept_pages_;
  std::set<PageKey> lost_pages_;
  CacheStore::RepairReport report_;
};

}  // namespace

absl::StatusOr<CacheStore::RepairReport> CacheStore::Repair(
    const CacheStoreOptions& options) {
  const fs::path dir = options.dir;
  std::error_code error;
  if (!fs::is_directory(dir / "db", error)) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no store in ", options.dir));
  }
  // Held until the end: it moves away with the old database.
  rocksdb::Env* env =
      options.env != nullptr ? options.env : rocksdb::Env::Default();
  rocksdb::FileLock* lock = nullptr;
  if (!env->LockFile((dir / "db" / "LOCK").string(), &lock).ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", options.dir, " is in use by another process"));
  }
  auto report = Repairer(options, dir).Run();
  env->UnlockFile(lock);
  return report;
}

}  // namespace xcache
