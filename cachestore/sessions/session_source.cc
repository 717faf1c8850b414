#include "cachestore/sessions/session_source.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/file_system.h"
#include "cachestore/rocksdb/info_log.h"
#include "cachestore/rocksdb/table_check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/sst_file_reader.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

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

}  // namespace

SessionSource::SessionSource(const DiskPlan& plan, rocksdb::Env* env,
                             std::string path)
    : path_(std::move(path)), plan_(plan), env_(MakeStoreEnv(env, nullptr)) {
  options_ = MakeRocksDbOptions(DatabaseKind::kSessions,
                                DatabaseResources(8 << 20, 0), plan);
  options_.env = env_.get();
  options_.info_log = MakeInfoLog(path_);
  options_.create_if_missing = false;
  options_.wal_recovery_mode =
      rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options_.max_open_files = -1;  // every table is opened, and so checked
}

SessionSource::~SessionSource() {
  for (auto* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
}

absl::StatusOr<std::unique_ptr<SessionSource>> SessionSource::Open(
    const std::string& db_path, const std::string& scratch,
    const DiskPlan& plan, rocksdb::Env* env,
    const std::optional<LedgerRecord>& ledger) {
  XC_RETURN_IF_ERROR(CopyDatabase(db_path, scratch));
  std::unique_ptr<SessionSource> source(new SessionSource(plan, env, scratch));
  const absl::Status manifest =
      ledger ? CheckManifest(*ledger, scratch) : absl::OkStatus();
  if (!manifest.ok()) {
    XC_LOG_WARN("the store's MANIFEST is damaged", "path={} detail={}",
                LogValue(db_path), LogValue(std::string(manifest.message())));
  } else if (source->OpenDb(/*strict=*/true)) {
    return source;
  }
  source->DropDamagedTables();
  source->Rebuild();
  return source;
}

// Strict: damage that shows when it is opened, but for a damaged log, is not
// overlooked.
bool SessionSource::OpenDb(bool strict) {
  rocksdb::Options options = options_;
  options.paranoid_checks = strict;
  std::vector<std::string> names;
  if (!rocksdb::DB::ListColumnFamilies(options, path_, &names).ok()) {
    return false;
  }
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened = rocksdb::DB::OpenForReadOnly(
      options, path_, DescribeFamilies(options, plan_, names), &handles_, &db);
  if (!opened.ok()) {
    XC_LOG_WARN("the store does not open as it is", "path={} detail={}",
                LogValue(path_), LogValue(opened.ToString()));
    return false;
  }
  db_.reset(db);
  return true;
}

void SessionSource::DropDamagedTables() {
  std::error_code error;
  std::vector<fs::path> tables;
  for (const auto& file : fs::directory_iterator(path_, error)) {
    if (file.path().extension() == ".sst") tables.push_back(file.path());
  }
  for (const fs::path& table : tables) {
    const absl::Status checked = CheckTableFile(table.string());
    if (checked.ok()) continue;
    XC_LOG_WARN("set a damaged table aside", "file={} detail={}",
                LogValue(table.filename().string()),
                LogValue(std::string(checked.message())));
    fs::remove(table, error);  // the link; the store still has the file
    ++num_tables_dropped_;
  }
}

void SessionSource::Rebuild() {
  const rocksdb::ColumnFamilyOptions family(options_);
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (const Family f : FamiliesOf(DatabaseKind::kSessions)) {
    families.emplace_back(std::string(FamilyName(f)), family);
  }
  // A family that it is not told of (of pages, in a store of format 1) is one
  // like the others.
  const rocksdb::Status repaired =
      rocksdb::RepairDB(path_, options_, families, family);
  if (!repaired.ok()) {
    XC_LOG_WARN("RocksDB's repair failed", "path={} detail={}", LogValue(path_),
                LogValue(repaired.ToString()));
  }
  OpenDb(/*strict=*/false);
}

rocksdb::ColumnFamilyHandle* SessionSource::Handle(Family family) const {
  for (auto* handle : handles_) {
    if (handle->GetName() == FamilyName(family)) return handle;
  }
  return nullptr;
}

void SessionSource::AddKeys(Family family, std::set<std::string>& keys) const {
  rocksdb::ColumnFamilyHandle* handle = Handle(family);
  if (handle == nullptr) return;
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> it(
      db_->NewIterator(options, handle));
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    keys.insert(it->key().ToString());
  }
  if (it->status().ok()) return;
  for (it->SeekToLast(); it->Valid(); it->Prev()) {
    keys.insert(it->key().ToString());
  }
}

bool SessionSource::Get(Family family, const std::string& key,
                        std::string* value) const {
  rocksdb::ColumnFamilyHandle* handle = Handle(family);
  if (handle == nullptr) return false;
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  return db_->Get(options, handle, key, value).ok();
}

void SessionSource::ReadLeftOut(
    Family family,
    const std::function<void(const std::string& key, std::string value)>& fn)
    const {
  std::error_code error;
  for (const auto& file : fs::directory_iterator(path_ + "/lost", error)) {
    // Those that were never fit to be read are not among them.
    if (file.path().extension() != ".sst") continue;
    rocksdb::SstFileReader reader(options_);
    if (!reader.Open(file.path().string()).ok() ||
        reader.GetTableProperties()->column_family_name != FamilyName(family)) {
      continue;
    }
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(options));
    const auto take = [&] { fn(it->key().ToString(), it->value().ToString()); };
    for (it->SeekToFirst(); it->Valid(); it->Next()) take();
    if (it->status().ok()) continue;
    for (it->SeekToLast(); it->Valid(); it->Prev()) take();
  }
}

}  // namespace xcache
