// How a database is opened: its folder, a look at what is in it, what a new one
// needs; and what happens to pages that do not open.
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
#include "cachestore/rocksdb/info_log.h"
#include "cachestore/rocksdb/open_check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

absl::Status InUse(const std::string& dir) {
  return absl::FailedPreconditionError(
      absl::StrCat("store ", dir, " is in use by another process"));
}

bool Contains(std::span<const std::string> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

absl::Status MakeFolder(const std::string& dir) {
  const auto failed = [&](const char* what) {
    const int error = errno;
    const std::string message = absl::StrCat("cannot ", what, " folder ", dir,
                                             ": ", std::strerror(error));
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
  };
  std::error_code error;
  const auto parent = fs::path(dir).parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) return failed("make");
  struct stat st;
  if (::stat(dir.c_str(), &st) != 0) return failed("read");
  if (!S_ISDIR(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(dir, " is not a folder"));
  }
  if (::access(dir.c_str(), R_OK | W_OK | X_OK) != 0) return failed("use");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(
    const DatabaseOptions& options, const DatabaseResources& resources,
    DiskSpace& space) {
  auto database =
      std::unique_ptr<Database>(new Database(options, resources, space));
  bool is_new = false;
  XC_RETURN_IF_ERROR(options.kind == DatabaseKind::kSessions
                         ? database->OpenSessions()
                         : database->OpenPages(&is_new));
  return database;
}

absl::Status Database::MakeFolders() {
  XC_RETURN_IF_ERROR(MakeFolder(options_.dir));
  XC_RETURN_IF_ERROR(MakeFolder(path_));
  struct stat st;
  // Whatever the mode of a folder that was there before, ours is private.
  if (::chmod(path_.c_str(), 0700) != 0 || ::stat(path_.c_str(), &st) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(
        "cannot set the mode of ", path_, ": ", std::strerror(errno)));
  }
  folder_inode_ = st.st_ino;
  return CheckRoomToOpen(options_.dir, path_);
}

absl::Status Database::OpenSessions() {
  XC_RETURN_IF_ERROR(MakeFolders());
  const DiskPlan& plan = space_.plan();
  // One that is being made has no ledger: it is nothing yet.
  const bool has_ledger = options_.subfolder.empty();
  ledger_ =
      has_ledger ? std::make_unique<SyncLedger>(LedgerPath(path_)) : nullptr;
  env_ = MakeStoreEnv(options_.env, ledger_.get());
  rocksdb_options_ = MakeRocksDbOptions(options_.kind, resources_, plan);
  rocksdb_options_.env = env_.get();
  const std::optional<LedgerRecord> known =
      has_ledger ? ReadLedger(LedgerPath(path_)) : std::nullopt;
  XC_ASSIGN_OR_RETURN(
      const OpenCheck check,
      CheckBeforeOpen({.dir = options_.dir,
                       .path = path_,
                       .format = kSessionsFormat,
                       .families = FamiliesOf(DatabaseKind::kSessions)},
                      rocksdb_options_, plan, known));
  rocksdb_options_.wal_recovery_mode = check.recovery_mode;
  has_torn_log_ = check.has_torn_log;
  // Opening makes a new MANIFEST: of that, too, a ledger is to know.
  if (known) XC_RETURN_IF_ERROR(ledger_->Start(known));
  XC_ASSIGN_OR_RETURN(LiveRef live, OpenRocksDb(check.families));
  if (check.is_empty) {
    XC_RETURN_IF_ERROR(TakeOver(*live, check.families));
    XC_RETURN_IF_ERROR(WriteFormat(*live));
  }
  if (has_ledger) {
    // What was in the log is in synced tables now.
    ledger_->LogSynced(live->db->GetLatestSequenceNumber());
    // From here on it is a store, and one that is gone would be missed.
    if (!known) XC_RETURN_IF_ERROR(ledger_->Start(std::nullopt));
  }
  Publish(std::move(live));
  return absl::OkStatus();
}

absl::Status Database::OpenPages(bool* is_new) {
  const absl::Status opened = TryOpenPages();
  if (!absl::IsDataLoss(opened)) return opened;
  XC_RETURN_IF_ERROR(SetAside(opened));
  *is_new = true;
  return TryOpenPages();
}

absl::Status Database::TryOpenPages() {
  XC_RETURN_IF_ERROR(MakeFolders());
  env_ = MakeStoreEnv(options_.env, nullptr);
  rocksdb_options_ =
      MakeRocksDbOptions(options_.kind, resources_, space_.plan());
  rocksdb_options_.env = env_.get();
  std::vector<std::string> families = {"default"};
  std::error_code error;
  if (fs::exists(path_ + "/CURRENT", error)) {
    families.clear();
    const rocksdb::Status listed =
        rocksdb::DB::ListColumnFamilies(rocksdb_options_, path_, &families);
    if (IsTransient(listed)) return FromRocksDb(listed, path_);
    if (!listed.ok()) return absl::DataLossError(listed.ToString());
  } else if (HasData(path_)) {
    return absl::DataLossError("the file CURRENT is missing");
  }
  XC_ASSIGN_OR_RETURN(LiveRef live, OpenRocksDb(families));
  std::string record;
  const rocksdb::Status got =
      live->db->Get({}, live->handle(Family::kMeta), FormatKey(), &record);
  // The pages of a store of format 1 are as they are today.
  const bool is_old = got.ok() && CheckFormat(record, kStoreFormat1).ok();
  if (got.ok() && !is_old) {
    const absl::Status checked = CheckFormat(record, kPagesFormat);
    // Pages are a cache, and of another version no use.
    if (!checked.ok()) return absl::DataLossError(checked.message());
  } else if (!got.ok() && !got.IsNotFound()) {
    return absl::DataLossError(got.ToString());
  }
  XC_RETURN_IF_ERROR(TakeOver(*live, families));
  if (!got.ok() || is_old) XC_RETURN_IF_ERROR(WriteFormat(*live));
  Publish(std::move(live));
  return absl::OkStatus();
}

absl::StatusOr<Database::LiveRef> Database::OpenRocksDb(
    const std::vector<std::string>& families) {
  rocksdb_options_.info_log = MakeInfoLog(path_);
  AddListener();
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(
      rocksdb_options_, path_,
      DescribeFamilies(rocksdb_options_, space_.plan(), families), &handles,
      &db);
  if (!status.ok()) {
    const absl::Status mapped = FromRocksDb(status, "RocksDB");
    if (status.IsNoSpace()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("store ", options_.dir, ": ", mapped.message()));
    }
    if (absl::StrContains(status.ToString(), "LOCK"))
      return InUse(options_.dir);
    if (IsTransient(status)) return mapped;
    return options_.kind == DatabaseKind::kSessions
               ? WouldNotOpen(options_.dir, mapped)
               : absl::DataLossError(mapped.message());
  }
  auto live = std::make_shared<Live>();
  live->db.reset(db);
  for (rocksdb::ColumnFamilyHandle* handle : handles) live->Take(handle);
  return live;
}

absl::Status Database::TakeOver(Live& live,
                                std::span<const std::string> families) {
  const auto failed = [this](const rocksdb::Status& status) {
    return FromRocksDb(status, "cannot make " + path_);
  };
  const std::span<const Family> wanted = FamiliesOf(options_.kind);
  for (const Family family : wanted) {
    if (Contains(families, FamilyName(family))) continue;
    rocksdb::ColumnFamilyHandle* handle = nullptr;
    const rocksdb::Status created = live.db->CreateColumnFamily(
        MakeFamilyOptions(rocksdb_options_, space_.plan(), FamilyName(family)),
        std::string(FamilyName(family)), &handle);
    if (!created.ok()) return failed(created);
    live.Take(handle);
  }
  for (rocksdb::ColumnFamilyHandle* handle : live.handles) {
    const bool is_ours = std::any_of(
        wanted.begin(), wanted.end(),
        [&](Family family) { return FamilyName(family) == handle->GetName(); });
    if (is_ours) continue;
    const rocksdb::Status dropped = live.db->DropColumnFamily(handle);
    if (!dropped.ok()) return failed(dropped);
  }
  if (options_.kind != DatabaseKind::kSessions) return absl::OkStatus();
  // RocksDB's repair knows a family by the files that it has: give it one.
  for (const Family family : {Family::kSessions, Family::kSessionIndex}) {
    rocksdb::Status marked =
        live.db->Put({}, live.handle(family), std::string(FamilyMarker()), "");
    if (marked.ok()) marked = live.db->Flush({}, live.handle(family));
    if (!marked.ok()) return failed(marked);
  }
  return absl::OkStatus();
}

absl::Status Database::WriteFormat(Live& live) {
  rocksdb::WriteOptions synced;
  synced.sync = true;
  return FromRocksDb(
      live.db->Put(synced, live.handle(Family::kMeta), FormatKey(),
                   FormatRecord(options_.kind == DatabaseKind::kSessions
                                    ? kSessionsFormat
                                    : kPagesFormat)),
      "cannot make " + path_);
}

absl::Status Database::SetAside(const absl::Status& why) {
  const std::string aside = path_ + ".damaged";
  std::error_code error;
  fs::remove_all(aside, error);
  fs::rename(path_, aside, error);
  XC_RETURN_IF_ERROR(FileStatus(error, "cannot set aside " + path_));
  XC_LOG_ERROR(
      "the database of pages is damaged: it was set aside, and a new one is "
      "begun; no conversation is lost, pages will be computed again",
      "path={} aside={} reason={}", LogValue(path_), LogValue(aside),
      LogValue(std::string(why.message())));
  MutexLock lock(mu_);
  ++num_set_aside_;
  return absl::OkStatus();
}

bool Database::DropSetAside() {
  const std::string aside = path_ + ".damaged";
  std::error_code error;
  if (!fs::exists(aside, error)) return false;
  fs::remove_all(aside, error);
  XC_LOG_INFO("deleted the pages that were set aside: their room is needed",
              "path={}", LogValue(aside));
  return true;
}

}  // namespace xcache
