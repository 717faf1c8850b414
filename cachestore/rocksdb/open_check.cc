#include "cachestore/rocksdb/open_check.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/db.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

using Mode = rocksdb::WALRecoveryMode;

absl::StatusOr<OpenCheck> Check(const std::string& path, const Format& format,
                                const rocksdb::Options& options,
                                const std::optional<LedgerRecord>& ledger) {
  OpenCheck check;
  std::error_code error;
  if (!fs::exists(path + "/CURRENT", error)) {
    check.is_empty = !ledger && !HasData(path);
    if (check.is_empty) return check;
    return absl::DataLossError("the file CURRENT is missing");
  }
  if (ledger) XC_RETURN_IF_ERROR(CheckManifest(*ledger, path));
  const auto open = [&](Mode mode) {
    rocksdb::Options with_mode = options;
    with_mode.wal_recovery_mode = mode;
    return ReadOnlyDb::Open(with_mode, path);
  };
  auto db = open(check.recovery_mode);
  if (absl::IsDataLoss(db.status())) {
    // A power loss may leave rubbish behind what was synced. If no intact
    // record follows the damage, that is what it is; if the log went further
    // once, the ledger below knows.
    const absl::Status strict = db.status();
    db = open(Mode::kPointInTimeRecovery);
    const auto beyond = open(Mode::kSkipAnyCorruptedRecords);
    if (!db.ok() || !beyond.ok() ||
        (*db)->sequence() != (*beyond)->sequence()) {
      return strict;
    }
    XC_LOG_WARN("the log of the store has a torn end", "path={} detail={}",
                LogValue(path), LogValue(std::string(strict.message())));
    check.recovery_mode = Mode::kPointInTimeRecovery;
    check.has_torn_log = true;
  }
  if (!db.ok()) return db.status();
  if (!ledger) {
    // A start would delete what its MANIFEST does not name.
    const std::string left_out = (*db)->TableLeftOut(path);
    if (!left_out.empty()) {
      return absl::DataLossError(
          absl::StrCat("its MANIFEST does not name the table ", left_out,
                       ", and there is no whole ledger that says why"));
    }
  }
  if (ledger && (*db)->sequence() < ledger->synced_sequence) {
    return absl::DataLossError(
        absl::StrCat("it was synced up to record ", ledger->synced_sequence,
                     " and now ends at ", (*db)->sequence()));
  }
  std::string record;
  const rocksdb::Status got = (*db)->GetFormat(&record);
  if (got.ok()) {
    XC_RETURN_IF_ERROR(CheckFormat(record, format));
    return check;
  }
  if (ledger && !got.IsNotFound()) {
    // It was whole once; what is around the damage is served.
    XC_LOG_WARN("the store's format record is damaged", "path={} detail={}",
                LogValue(path), LogValue(got.ToString()));
    return check;
  }
  if (!got.IsNotFound() || ledger) return FromRocksDb(got, "format record");
  // Its making was cut off before the last step: then it holds nothing yet.
  if (!(*db)->IsEmpty()) {
    return absl::FailedPreconditionError(
        "it holds a RocksDB that is not a store of XCache");
  }
  check.is_empty = true;
  return check;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReadOnlyDb>> ReadOnlyDb::Open(
    rocksdb::Options options, const std::string& path) {
  options.listeners.clear();
  options.create_if_missing = false;
  // Every table, not the first few: each is looked at when it is opened.
  options.max_open_files = -1;
  std::vector<std::string> names;
  const rocksdb::Status listed =
      rocksdb::DB::ListColumnFamilies(options, path, &names);
  if (!listed.ok()) return FromRocksDb(listed, "MANIFEST");
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (const std::string& name : names) families.emplace_back(name, options);
  auto out = std::make_unique<ReadOnlyDb>();
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened = rocksdb::DB::OpenForReadOnly(
      options, path, families, &out->handles_, &db);
  if (!opened.ok()) return FromRocksDb(opened, "RocksDB");
  out->db_.reset(db);
  return out;
}

ReadOnlyDb::~ReadOnlyDb() {
  for (auto* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
}

rocksdb::Status ReadOnlyDb::GetFormat(std::string* record) const {
  return db_->Get({}, FormatKey(), record);
}

std::string ReadOnlyDb::TableLeftOut(const std::string& path) const {
  std::vector<rocksdb::LiveFileMetaData> live;
  db_->GetLiveFilesMetaData(&live);
  std::error_code error;
  for (const auto& file : fs::directory_iterator(path, error)) {
    const std::string name = file.path().filename().string();
    if (file.path().extension() == ".sst" &&
        std::none_of(live.begin(), live.end(), [&](const auto& table) {
          return table.relative_filename == name;
        })) {
      return name;
    }
  }
  return "";
}

bool ReadOnlyDb::IsEmpty() const {
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator({}));
  it->SeekToFirst();
  return !it->Valid() && it->status().ok();
}

void ReadOnlyDb::ForEachRecord(const RecordFn& fn) const {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  for (auto* handle : handles_) {
    const std::unique_ptr<rocksdb::Iterator> it(
        db_->NewIterator(options, handle));
    xcache::ForEachRecord(*it, handle->GetName(), fn);
  }
}

void ForEachRecord(rocksdb::Iterator& it, std::string_view column_family,
                   const RecordFn& fn) {
  std::optional<Family> family;  // of all keys: in a store of format 1
  if (column_family == "sessions") family = Family::kSessions;
  if (column_family == "session_index") family = Family::kSessionIndex;
  if (!family && column_family != "default") return;
  const rocksdb::Status status =
      ForEach(it, [&](std::string_view key, std::string_view value) {
        if (family) {
          fn(*family, key, value);
        } else if (!key.empty()) {
          fn(static_cast<Family>(key[0]), key.substr(1), value);
        }
      });
  if (!status.ok()) {
    XC_LOG_WARN("a part of a database cannot be read", "detail={}",
                LogValue(status.ToString()));
  }
}

std::string FormatKey() { return "format"; }

std::string FormatRecord(const Format& format) {
  std::string out;
  FieldWriter w(out);
  w.Bytes(format.name);
  w.Int(format.version);
  w.Int(Crc32c(out));
  return out;
}

absl::Status CheckFormat(std::string_view record, const Format& format) {
  FieldReader r(record);
  const std::string_view name = r.Bytes();
  const auto version = r.Int<uint32_t>();
  const std::string_view body = record.substr(0, r.offset());
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || name != format.name || crc != Crc32c(body)) {
    return absl::DataLossError("bad format record");
  }
  if (version != format.version) {
    return absl::FailedPreconditionError(
        absl::StrCat("it has format version ", version,
                     ", this program reads version ", format.version));
  }
  return absl::OkStatus();
}

bool HasData(const std::string& path) {
  std::error_code error;
  for (const auto& file : fs::directory_iterator(path, error)) {
    const auto extension = file.path().extension();
    if (extension == ".sst" || extension == ".blob" ||
        (extension == ".log" && file.file_size(error) > 0)) {
      return true;
    }
  }
  return false;
}

absl::Status WouldNotOpen(const std::string& dir, const absl::Status& why) {
  return absl::DataLossError(
      absl::StrCat("store ", dir, " would not open: ", why.message(),
                   "; --repair keeps every record in it that is whole"));
}

absl::StatusOr<OpenCheck> CheckBeforeOpen(
    const std::string& dir, const std::string& path, const Format& format,
    const rocksdb::Options& options,
    const std::optional<LedgerRecord>& ledger) {
  auto check = Check(path, format, options, ledger);
  if (check.ok()) return check;
  if (!absl::IsFailedPrecondition(check.status())) {
    return WouldNotOpen(dir, check.status());
  }
  return absl::FailedPreconditionError(
      absl::StrCat("store ", dir, ": ", check.status().message()));
}

}  // namespace xcache
