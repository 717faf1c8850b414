// CacheStore::Repair: what is whole in a damaged store goes into a new one,
// which then takes its place. The damaged one is only read (repair_source.h);
// where RocksDB's own repair had to run on the copy, pages are taken from the
// blob files themselves.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/store_options.h"
#include "cachestore/rocksdb/store_records.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/sessions/blob_salvage.h"
#include "cachestore/sessions/repair_source.h"
#include "engine/base/crc32c.h"
#include "engine/base/status_macros.h"
#include "rocksdb/env.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

// Memory for the databases that a repair opens; nothing else runs meanwhile.
constexpr int64_t kRepairMemory = 256 << 20;

// The manifest in `value` if it is whole and that of `key`.
absl::StatusOr<SessionRecord> WholeRecord(const std::string& key,
                                          const std::string& value) {
  auto record = DecodeSessionRecord(value);
  if (record.ok() && SessionKey(record->tenant, record->id) != key) {
    return absl::DataLossError("session record: of another session");
  }
  return record;
}

// Whether `value` is a whole manifest of a session, and `other` is none or one
// from before it.
bool IsNewer(const std::string& key, const std::string& value,
             const std::string& other) {
  const auto record = WholeRecord(key, value);
  if (!record.ok()) return false;
  const auto before = WholeRecord(key, other);
  if (!before.ok()) return !absl::IsFailedPrecondition(before.status());
  return std::tie(record->create_ms, record->turn, record->update_ms) >
         std::tie(before->create_ms, before->turn, before->update_ms);
}

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
    XC_RETURN_IF_ERROR(CheckRoomToOpen(dir_.string(), (dir_ / "db").string()));
    XC_ASSIGN_OR_RETURN(
        source_, RepairSource::Open((dir_ / "db").string(), scratch.string(),
                                    db_options_, ReadLedger(dir_.string())));
    needs_salvage_ = source_->is_rebuilt();
    report_.tables_dropped = source_->num_tables_dropped();
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
  absl::Status CopySessions() {
    std::set<std::string> keys;
    source_->AddKeys(Family::kSessions, keys);
    source_->AddKeys(Family::kSessionIndex, keys);
    std::map<std::string, std::string> left_out;
    source_->ReadLeftOut(Family::kSessions,
                         [&](const std::string& key, std::string value) {
                           keys.insert(key);
                           std::string& newest = left_out[key];
                           if (IsNewer(key, value, newest))
                             newest = std::move(value);
                         });
    for (const std::string& key : keys) {
      if (!ParseSessionKey(key)) continue;  // the family's marker
      std::string value;
      std::string entry;
      source_->Get(Family::kSessions, key, &value);
      if (const auto it = left_out.find(key);
          it != left_out.end() && IsNewer(key, it->second, value)) {
        value = it->second;
      }
      const auto record = WholeRecord(key, value);
      if (record.ok()) {
        entry = EncodeSessionEntry(MakeSessionEntry(*record));
      } else if (absl::IsFailedPrecondition(record.status())) {
        // Another version's: not ours to judge.
        source_->Get(Family::kSessionIndex, key, &entry);
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
  std::unique_ptr<RepairSource> source_;
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
