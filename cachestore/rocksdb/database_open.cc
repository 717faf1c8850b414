// How a database is opened: its folder, a look at what is in it, what a new one
// needs; and what happens to pages that do not open.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
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

namespace xcache {
namespace {

namespace fs = std::filesystem;

absl::Status InUse(const std::string& dir) {
  return absl::FailedPreconditionError(
      absl::StrCat("store ", dir, " is in use by another process"));
}

// Closes it, which its deletion would do without a word.
void Close(rocksdb::DB* db) {
  if (const rocksdb::Status closed = db->Close(); !closed.ok()) {
    XC_LOG_WARN("a database did not close cleanly", "path={} detail={}",
                LogValue(db->GetName()), LogValue(closed.ToString()));
  }
  delete db;
}

}  // namespace

absl::Status MakeFolder(const std::string& dir) {
  std::error_code error;
  const auto parent = fs::path(dir).parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, "cannot make folder " + dir);
  }
  if (!fs::is_directory(dir, error)) {
    return absl::FailedPreconditionError(dir + " is not a folder");
  }
  if (::access(dir.c_str(), R_OK | W_OK | X_OK) != 0) {
    return absl::ErrnoToStatus(errno, "cannot use folder " + dir);
  }
  return absl::OkStatus();
}

absl::StatusOr<FolderLock> LockFolder(rocksdb::Env* env,
                                      const std::string& folder,
                                      const std::string& dir) {
  if (env == nullptr) env = rocksdb::Env::Default();
  rocksdb::FileLock* lock = nullptr;
  if (!env->LockFile(folder + "/LOCK", &lock).ok()) return InUse(dir);
  return FolderLock(lock, [env](rocksdb::FileLock* l) { env->UnlockFile(l); });
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(
    const DatabaseOptions& options, const DatabaseResources& resources,
    DiskSpace& space) {
  auto database =
      std::unique_ptr<Database>(new Database(options, resources, space));
  bool is_new = false;
  XC_RETURN_IF_ERROR(database->OpenKind(&is_new));
  return database;
}

absl::Status Database::Prepare(SyncLedger* ledger) {
  XC_RETURN_IF_ERROR(MakeFolder(path_));
  struct stat st;
  // Whatever the mode of a folder that was there before, ours is private.
  if (::chmod(path_.c_str(), 0700) != 0 || ::stat(path_.c_str(), &st) != 0) {
    return absl::ErrnoToStatus(errno, "cannot set the mode of " + path_);
  }
  folder_inode_ = st.st_ino;
  XC_RETURN_IF_ERROR(CheckRoomToOpen(options_.dir, path_));
  env_ = MakeStoreEnv(options_.env, ledger);
  rocksdb_options_ =
      MakeRocksDbOptions(options_.kind, resources_, space_.plan(), path_);
  rocksdb_options_.env = env_.get();
  return absl::OkStatus();
}

absl::Status Database::OpenSessions() {
  ledger_ = std::make_unique<SyncLedger>(LedgerPath(path_));
  XC_RETURN_IF_ERROR(Prepare(ledger_.get()));
  const std::optional<LedgerRecord> known = ReadLedger(LedgerPath(path_));
  XC_ASSIGN_OR_RETURN(const OpenCheck check,
                      CheckBeforeOpen(options_.dir, path_, kSessionsFormat,
                                      rocksdb_options_, known));
  rocksdb_options_.wal_recovery_mode = check.recovery_mode;
  has_torn_log_ = check.has_torn_log;
  // Opening makes a new MANIFEST: of that, too, a ledger is to know.
  if (known) XC_RETURN_IF_ERROR(ledger_->Start(known));
  XC_ASSIGN_OR_RETURN(Live live, OpenRocksDb());
  if (check.is_empty) XC_RETURN_IF_ERROR(WriteFormat(*live, kSessionsFormat));
  // What was in the log is in synced tables now.
  ledger_->LogSynced(live->GetLatestSequenceNumber());
  // From here on it is a store, and one that is gone would be missed.
  if (!known) XC_RETURN_IF_ERROR(ledger_->Start(std::nullopt));
  Publish(std::move(live));
  return absl::OkStatus();
}

absl::Status Database::OpenKind(bool* is_new) {
  if (options_.kind == DatabaseKind::kSessions) return OpenSessions();
  const absl::Status opened = OpenPages();
  if (!absl::IsDataLoss(opened)) return opened;
  XC_RETURN_IF_ERROR(SetAside(opened));
  *is_new = true;
  return OpenPages();
}

absl::Status Database::OpenPages() {
  XC_RETURN_IF_ERROR(Prepare(nullptr));
  std::error_code error;
  if (!fs::exists(path_ + "/CURRENT", error) && HasData(path_)) {
    return absl::DataLossError("the file CURRENT is missing");
  }
  XC_ASSIGN_OR_RETURN(Live live, OpenRocksDb());
  std::string record;
  const rocksdb::Status got = live->Get({}, FormatKey(), &record);
  if (got.ok()) {
    const absl::Status checked = CheckFormat(record, kPagesFormat);
    // Pages are a cache, and of another version no use.
    if (!checked.ok()) return absl::DataLossError(checked.message());
  } else if (got.IsNotFound()) {
    XC_RETURN_IF_ERROR(WriteFormat(*live, kPagesFormat));
  } else {
    return absl::DataLossError(got.ToString());
  }
  Publish(std::move(live));
  return absl::OkStatus();
}

absl::StatusOr<Database::Live> Database::OpenRocksDb() {
  // It outlives the RocksDB, which shares it with nobody.
  rocksdb_options_.listeners = {
      std::shared_ptr<rocksdb::EventListener>(std::shared_ptr<void>(), this)};
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status =
      rocksdb::DB::Open(rocksdb_options_, path_, &db);
  if (status.ok()) return Live(db, Close);
  const absl::Status mapped = FromRocksDb(status, "RocksDB");
  if (status.IsNoSpace()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("store ", options_.dir, ": ", mapped.message()));
  }
  if (absl::StrContains(status.ToString(), "LOCK")) return InUse(options_.dir);
  if (IsTransient(status)) return mapped;
  return options_.kind == DatabaseKind::kSessions
             ? WouldNotOpen(options_.dir, mapped)
             : absl::DataLossError(mapped.message());
}

absl::Status Database::WriteFormat(rocksdb::DB& db, const Format& format) {
  rocksdb::WriteOptions synced;
  synced.sync = true;
  return FromRocksDb(db.Put(synced, FormatKey(), FormatRecord(format)),
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
