#include "cachestore/sessions/rebuild.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/file_system.h"
#include "cachestore/rocksdb/open_check.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/env.h"
#include "rocksdb/sst_file_reader.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

// Memory for the databases that are opened meanwhile; nothing else runs.
constexpr int64_t kRebuildMemory = 64 << 20;
constexpr char kFresh[] = "sessions.new";
constexpr char kScratch[] = "repair-scratch";
constexpr char kMigrated[] = "db.migrated";

// A database of sessions that is replaced.
struct Source {
  fs::path db;
  std::string ledger;
  bool is_format_1 = false;
};

Source SourceIn(const fs::path& dir) {
  std::error_code error;
  if (fs::exists(dir / "db", error)) return {dir / "db", dir / "ledger", true};
  return {dir / "sessions", LedgerPath(dir / "sessions"), false};
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

class Rebuild {
 public:
  Rebuild(const CacheStoreOptions& options, const Source& source)
      : dir_(options.dir),
        source_(source),
        env_(options.env),
        // For a while everything is there twice.
        plan_(PlanDisk(4 * options.disk_bytes, kRebuildMemory)),
        space_(options.dir, plan_, options.min_free_bytes),
        resources_(kRebuildMemory, /*compaction_bytes_per_s=*/0) {}

  // Puts the sessions that are whole into sessions.new, synced.
  absl::Status Run() {
    const std::string scratch = dir_ / kScratch;
    std::error_code error;
    fs::remove_all(scratch, error);
    fs::remove_all(dir_ / kFresh, error);
    XC_RETURN_IF_ERROR(CheckRoomToOpen(dir_, source_.db));
    XC_RETURN_IF_ERROR(CopyDatabase(source_.db, scratch));
    XC_ASSIGN_OR_RETURN(target_,
                        Database::Open({.kind = DatabaseKind::kSessions,
                                        .dir = dir_.string(),
                                        .subfolder = kFresh,
                                        .env = env_,
                                        .on_started_anew = nullptr},
                                       resources_, space_));
    ReadAll(scratch);
    XC_RETURN_IF_ERROR(failed_);
    XC_RETURN_IF_ERROR(target_->Sync());
    target_ = nullptr;
    fs::remove_all(scratch, error);
    for (const std::string& key : kept_) known_.erase(key);
    for (const std::string& key : known_) {
      XC_LOG_WARN("a session cannot be kept", "key={}", LogValue(key));
    }
    return absl::OkStatus();
  }

  // Puts sessions.new in the place of the source, which becomes `aside`. At no
  // instant is there neither: PrepareFolder() finds a fresh one without
  // another.
  absl::Status Replace(const fs::path& aside) const {
    XC_RETURN_IF_ERROR(Rename(source_.db, aside));
    return Rename(dir_ / kFresh, dir_ / "sessions");
  }

  CacheStore::RepairReport report() const {
    return {.sessions_kept = static_cast<int64_t>(kept_.size()),
            .sessions_dropped = static_cast<int64_t>(known_.size()),
            .tables_dropped = num_tables_dropped_};
  }

 private:
  // Opens the copy as it is, where its MANIFEST is what the ledger says and
  // every table is fit for it; else after RocksDB's own repair.
  void ReadAll(const std::string& scratch) {
    const std::unique_ptr<rocksdb::Env> env =
        MakeStoreEnv(env_, /*ledger=*/nullptr, !source_.is_format_1);
    rocksdb::Options options =
        MakeRocksDbOptions(DatabaseKind::kSessions, resources_, plan_, scratch);
    options.env = env.get();
    options.wal_recovery_mode =
        rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
    const auto read = [&]() -> absl::Status {
      XC_ASSIGN_OR_RETURN(const auto db, ReadOnlyDb::Open(options, scratch));
      db->ForEachRecord([this](auto... record) { Take(record...); });
      return absl::OkStatus();
    };
    const std::optional<LedgerRecord> ledger = ReadLedger(source_.ledger);
    absl::Status status =
        ledger ? CheckManifest(*ledger, scratch) : absl::OkStatus();
    if (status.ok()) status = read();
    if (status.ok()) return;
    XC_LOG_WARN("the store is damaged: RocksDB repairs a copy of it",
                "path={} detail={}", LogValue(source_.db.string()),
                LogValue(std::string(status.message())));
    const rocksdb::Status repaired = rocksdb::RepairDB(scratch, options);
    options.paranoid_checks = false;
    status = read();
    if (!repaired.ok() || !status.ok()) {
      XC_LOG_WARN(
          "the repair failed: what is in its tables is taken, which may "
          "bring deleted sessions back",
          "repaired={} detail={}", LogValue(repaired.ToString()),
          LogValue(std::string(status.message())));
      // So it does where a kill left a table beside what was made of it: the
      // logs are tables by then.
      ReadTables(scratch, options);
    }
    // Those with a damaged block, which RocksDB's repair leaves out.
    ReadTables(scratch + "/lost", options);
  }

  void ReadTables(const std::string& folder, const rocksdb::Options& options) {
    std::error_code error;
    for (const auto& file : fs::directory_iterator(folder, error)) {
      if (file.path().extension() != ".sst") continue;
      rocksdb::SstFileReader reader(options);
      if (const auto opened = reader.Open(file.path()); !opened.ok()) {
        XC_LOG_WARN("a table is damaged", "detail={}",
                    LogValue(opened.ToString()));
        ++num_tables_dropped_;
        continue;
      }
      const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator({}));
      ForEachRecord(*it, reader.GetTableProperties()->column_family_name,
                    [this](auto... record) { Take(record...); });
    }
  }

  // Puts a session into the new database: of several records of it, the last.
  void Take(Family family, std::string_view key, std::string_view value) {
    if (!failed_.ok() || !ParseSessionKey(key) ||
        (family != Family::kSessions && family != Family::kSessionIndex)) {
      return;
    }
    known_.emplace(key);
    if (family != Family::kSessions) return;
    const auto record = DecodeSessionRecord(value, key);
    // Another version's is not ours to judge.
    if (!record.ok() && !absl::IsFailedPrecondition(record.status())) return;
    if (std::string have; target_->Get(Family::kSessions, key, &have).ok()) {
      const auto before = DecodeSessionRecord(have, key);
      if (!record.ok() || !before.ok() ||
          std::tie(record->create_ms, record->turn, record->update_ms) <=
              std::tie(before->create_ms, before->turn, before->update_ms)) {
        return;
      }
    }
    const std::string manifest =
        record.ok() ? EncodeSessionRecord(*record) : std::string(value);
    const WriteOp ops[] = {
        {Family::kSessions, key, {{manifest, {}}}},
        {Family::kSessionIndex, key, {{HeadOf(manifest), {}}}}};
    failed_ = target_->Write(ops, /*sync=*/false, Database::Room::kRecord);
    kept_.emplace(key);
  }

  const fs::path dir_;
  const Source source_;
  rocksdb::Env* const env_;
  const DiskPlan plan_;
  DiskSpace space_;
  const DatabaseResources resources_;
  std::unique_ptr<Database> target_;
  absl::Status failed_;
  std::set<std::string> known_;  // those that were kept too, till the end
  std::set<std::string> kept_;
  int64_t num_tables_dropped_ = 0;
};

// A store of format 1 has everything in `db`. Its sessions become a database of
// today's; pages are a cache, and are computed anew.
absl::Status Migrate(const CacheStoreOptions& options, const Source& source) {
  const fs::path dir = options.dir;
  std::error_code error;
  if (fs::exists(dir / "sessions" / "CURRENT", error)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "folder ", options.dir,
        " holds two stores, one of format 1 in 'db' and one of format 2 in "
        "'sessions', as when an older version was started on it: move one "
        "of them away"));
  }
  XC_ASSIGN_OR_RETURN(const FolderLock lock,
                      LockFolder(options.env, source.db.string(), options.dir));
  rocksdb::Options rocksdb_options = MakeRocksDbOptions(
      DatabaseKind::kSessions, DatabaseResources(kRebuildMemory, 0),
      PlanDisk(options.disk_bytes, kRebuildMemory), source.db);
  if (options.env != nullptr) rocksdb_options.env = options.env;
  XC_ASSIGN_OR_RETURN(
      const OpenCheck check,
      CheckBeforeOpen(options.dir, source.db, kStoreFormat1, rocksdb_options,
                      ReadLedger(source.ledger)));
  if (check.is_empty) return Rename(source.db, dir / kMigrated);
  Rebuild rebuild(options, source);
  XC_RETURN_IF_ERROR(rebuild.Run());
  XC_LOG_INFO(
      "the store's sessions have a database of their own now; pages will be "
      "computed again",
      "dir={} sessions={}", LogValue(options.dir),
      rebuild.report().sessions_kept);
  return rebuild.Replace(dir / kMigrated);
}

}  // namespace

absl::Status PrepareFolder(const CacheStoreOptions& options) {
  const fs::path dir = options.dir;
  const Source source = SourceIn(dir);
  if (source.is_format_1) XC_RETURN_IF_ERROR(Migrate(options, source));
  std::error_code error;
  if (!fs::exists(dir / "sessions", error) && fs::exists(dir / kFresh, error)) {
    // What was cut off between its two renames is finished here.
    XC_RETURN_IF_ERROR(Rename(dir / kFresh, dir / "sessions"));
  }
  for (const char* left : {kFresh, kScratch, kMigrated, "ledger"}) {
    fs::remove_all(dir / left, error);
  }
  return absl::OkStatus();
}

absl::StatusOr<CacheStore::RepairReport> CacheStore::Repair(
    const CacheStoreOptions& options) {
  const fs::path dir = options.dir;
  const Source source = SourceIn(dir);
  std::error_code error;
  if (!fs::is_directory(source.db, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no store in ", options.dir));
  }
  // Held until the end: it moves away with the old database.
  XC_ASSIGN_OR_RETURN(const FolderLock lock,
                      LockFolder(options.env, source.db.string(), options.dir));
  Rebuild rebuild(options, source);
  XC_RETURN_IF_ERROR(rebuild.Run());
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(
                           std::chrono::system_clock::now().time_since_epoch())
                           .count();
  fs::create_directories(dir / "lost", error);
  fs::path lost = dir / "lost" / std::to_string(seconds);
  for (int i = 1; fs::exists(lost, error); ++i) {
    lost = dir / "lost" / absl::StrCat(seconds, "-", i);
  }
  XC_RETURN_IF_ERROR(rebuild.Replace(lost));
  // Pages, of a store of format 1: they would take their room for nothing.
  for (const auto& file : fs::directory_iterator(lost, error)) {
    if (file.path().extension() == ".blob") fs::remove(file.path(), error);
  }
  XC_LOG_WARN("set the damaged database aside", "to={}",
              LogValue(lost.string()));
  return rebuild.report();
}

}  // namespace xcache
