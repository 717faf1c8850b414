#include "cachestore/sessions/rebuild.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/file_system.h"
#include "cachestore/rocksdb/open_check.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/sessions/session_entry.h"
#include "cachestore/sessions/session_source.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/env.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

// Memory for the databases that are opened meanwhile; nothing else runs.
constexpr int64_t kRebuildMemory = 64 << 20;
// Says which database of format 1 these sessions came from: its IDENTITY.
constexpr char kOriginKey[] = "migrated-from";

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

std::string IdentityOf(const fs::path& db) {
  std::ifstream in(db / "IDENTITY", std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// Renames survive a power loss only once their folder is synced.
absl::Status Rename(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  XC_RETURN_IF_ERROR(FileStatus(
      error,
      absl::StrCat("cannot rename ", from.string(), " to ", to.string())));
  const int fd = ::open(to.parent_path().c_str(), O_RDONLY | O_DIRECTORY);
  if (fd < 0) return absl::OkStatus();
  ::fsync(fd);
  ::close(fd);
  return absl::OkStatus();
}

class Rebuild {
 public:
  explicit Rebuild(const CacheStoreOptions& options)
      : dir_(options.dir),
        env_(options.env),
        // For a while everything is there twice.
        plan_(PlanDisk(4 * options.disk_bytes, kRebuildMemory)),
        space_(options.dir, plan_, options.min_free_bytes),
        resources_(kRebuildMemory, /*compaction_bytes_per_s=*/0) {}

  // Puts the sessions of the database `from` into sessions.new, synced.
  absl::Status Run(const fs::path& from, const std::string& ledger_path) {
    const fs::path scratch = dir_ / "repair-scratch";
    std::error_code error;
    fs::remove_all(scratch, error);
    fs::remove_all(dir_ / kFresh, error);
    XC_RETURN_IF_ERROR(CheckRoomToOpen(dir_.string(), from.string()));
    XC_ASSIGN_OR_RETURN(
        source_, SessionSource::Open(from.string(), scratch.string(), plan_,
                                     env_, ReadLedger(ledger_path)));
    report_.tables_dropped = source_->num_tables_dropped();
    XC_ASSIGN_OR_RETURN(target_,
                        Database::Open({.kind = DatabaseKind::kSessions,
                                        .dir = dir_.string(),
                                        .subfolder = kFresh,
                                        .env = env_,
                                        .on_started_anew = nullptr},
                                       resources_, space_));
    XC_RETURN_IF_ERROR(Copy());
    const std::string origin = IdentityOf(from);
    const WriteOp last[] = {{Family::kMeta, kOriginKey, {{origin, {}}}}};
    XC_RETURN_IF_ERROR(
        target_->Write(last, /*sync=*/true, Database::Room::kRecord));
    target_ = nullptr;
    source_ = nullptr;
    fs::remove_all(scratch, error);
    return absl::OkStatus();
  }

  absl::Status Adopt() { return Rename(dir_ / kFresh, dir_ / "sessions"); }

  const CacheStore::RepairReport& report() const { return report_; }

  static constexpr char kFresh[] = "sessions.new";

 private:
  absl::Status Copy() {
    std::set<std::string> keys;
    source_->AddKeys(Family::kSessions, keys);
    source_->AddKeys(Family::kSessionIndex, keys);
    std::map<std::string, std::string> left_out;
    source_->ReadLeftOut(Family::kSessions,
                         [&](const std::string& key, std::string value) {
                           keys.insert(key);
                           std::string& newest = left_out[key];
                           if (IsNewer(key, value, newest)) {
                             newest = std::move(value);
                           }
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
        XC_LOG_WARN("a session cannot be kept", "key={} detail={}",
                    LogValue(key),
                    LogValue(std::string(record.status().message())));
        ++report_.sessions_dropped;
        continue;
      }
      const WriteOp ops[] = {{Family::kSessions, key, {{value, {}}}},
                             {Family::kSessionIndex, key, {{entry, {}}}}};
      XC_RETURN_IF_ERROR(
          target_->Write(ops, /*sync=*/false, Database::Room::kRecord));
      ++report_.sessions_kept;
    }
    return absl::OkStatus();
  }

  const fs::path dir_;
  rocksdb::Env* const env_;
  const DiskPlan plan_;
  DiskSpace space_;
  const DatabaseResources resources_;
  std::unique_ptr<SessionSource> source_;
  std::unique_ptr<Database> target_;
  CacheStore::RepairReport report_;
};

// A store of format 1 has everything in `db`.
absl::Status Migrate(const CacheStoreOptions& options) {
  const fs::path dir = options.dir;
  const fs::path old = dir / "db";
  const fs::path old_ledger = dir / "ledger";
  const DiskPlan plan = PlanDisk(options.disk_bytes, kRebuildMemory);
  const std::unique_ptr<rocksdb::Env> env = MakeStoreEnv(options.env, nullptr);
  const DatabaseResources resources(kRebuildMemory, 0);
  std::error_code error;
  if (!fs::exists(dir / "sessions" / "CURRENT", error)) {
    rocksdb::Options rocksdb_options =
        MakeRocksDbOptions(DatabaseKind::kSessions, resources, plan);
    rocksdb_options.env = env.get();
    static constexpr Family kAll[] = {Family::kMeta, Family::kPages,
                                      Family::kPageIndex, Family::kSessions,
                                      Family::kSessionIndex};
    XC_ASSIGN_OR_RETURN(
        const OpenCheck check,
        CheckBeforeOpen({.dir = options.dir,
                         .path = old.string(),
                         .format = kStoreFormat1,
                         .families = kAll},
                        rocksdb_options, plan, ReadLedger(old_ledger)));
    Rebuild rebuild(options);
    if (!check.is_empty) XC_RETURN_IF_ERROR(rebuild.Run(old, old_ledger));
    if (!check.is_empty) XC_RETURN_IF_ERROR(rebuild.Adopt());
    XC_LOG_INFO("the store's sessions have a database of their own now",
                "dir={} sessions={}", LogValue(options.dir),
                rebuild.report().sessions_kept);
  } else {
    DiskSpace space(options.dir, plan, options.min_free_bytes);
    XC_ASSIGN_OR_RETURN(const std::unique_ptr<Database> sessions,
                        Database::Open({.kind = DatabaseKind::kSessions,
                                        .dir = options.dir,
                                        .subfolder = "",
                                        .env = options.env,
                                        .on_started_anew = nullptr},
                                       resources, space));
    std::string origin;
    if (!sessions->Get(Family::kMeta, kOriginKey, &origin).ok() ||
        origin != IdentityOf(old) || fs::exists(dir / "pages", error)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "folder ", options.dir,
          " holds two stores, one of format 1 in 'db' and one of format 2 in "
          "'sessions', as when an older version was started on it: move one "
          "of them away"));
    }
  }
  XC_RETURN_IF_ERROR(Rename(old, dir / "pages"));
  fs::remove(old_ledger, error);
  return absl::OkStatus();
}

bool IsLocked(rocksdb::Env* env, const fs::path& db) {
  if (env == nullptr) env = rocksdb::Env::Default();
  rocksdb::FileLock* lock = nullptr;
  if (!env->LockFile((db / "LOCK").string(), &lock).ok()) return true;
  env->UnlockFile(lock);
  return false;
}

}  // namespace

absl::Status PrepareFolder(const CacheStoreOptions& options) {
  const fs::path dir = options.dir;
  std::error_code error;
  if (fs::exists(dir / "db", error)) {
    if (IsLocked(options.env, dir / "db")) {
      return absl::FailedPreconditionError(
          absl::StrCat("store ", options.dir, " is in use by another process"));
    }
    return Migrate(options);
  }
  if (!fs::exists(dir / "sessions", error) &&
      fs::exists(dir / Rebuild::kFresh, error)) {
    // A repair that was cut off between its two renames is finished here.
    return Rename(dir / Rebuild::kFresh, dir / "sessions");
  }
  fs::remove_all(dir / Rebuild::kFresh, error);
  fs::remove_all(dir / "repair-scratch", error);
  return absl::OkStatus();
}

absl::StatusOr<CacheStore::RepairReport> CacheStore::Repair(
    const CacheStoreOptions& options) {
  const fs::path dir = options.dir;
  std::error_code error;
  const bool is_old = fs::exists(dir / "db", error);
  const fs::path damaged = is_old ? dir / "db" : dir / "sessions";
  const fs::path ledger =
      is_old ? dir / "ledger" : fs::path(LedgerPath(damaged.string()));
  if (!fs::is_directory(damaged, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no store in ", options.dir));
  }
  // Held until the end: it moves away with the old database.
  rocksdb::Env* env =
      options.env != nullptr ? options.env : rocksdb::Env::Default();
  rocksdb::FileLock* lock = nullptr;
  if (!env->LockFile((damaged / "LOCK").string(), &lock).ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", options.dir, " is in use by another process"));
  }
  const auto run = [&]() -> absl::StatusOr<RepairReport> {
    Rebuild rebuild(options);
    XC_RETURN_IF_ERROR(rebuild.Run(damaged, ledger.string()));
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(
            std::chrono::system_clock::now().time_since_epoch())
            .count();
    fs::create_directories(dir / "lost", error);
    fs::path lost = dir / "lost" / std::to_string(seconds);
    for (int i = 1; fs::exists(lost, error); ++i) {
      lost = dir / "lost" / absl::StrCat(seconds, "-", i);
    }
    // The new database counts its records anew. At no instant is there neither:
    // PrepareFolder() finds a fresh one without another.
    fs::remove(ledger, error);
    XC_RETURN_IF_ERROR(Rename(damaged, lost));
    XC_RETURN_IF_ERROR(rebuild.Adopt());
    // Pages, of a store of format 1: they would take their room for nothing.
    std::vector<fs::path> blobs;
    for (const auto& file : fs::directory_iterator(lost, error)) {
      if (file.path().extension() == ".blob") blobs.push_back(file.path());
    }
    for (const fs::path& blob : blobs) fs::remove(blob, error);
    XC_LOG_WARN("set the damaged database aside", "to={}",
                LogValue(lost.string()));
    return rebuild.report();
  };
  auto report = run();
  env->UnlockFile(lock);
  return report;
}

}  // namespace xcache
