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

// A database opened for reading, for as long as one looks at it.
class ReadOnlyDb {
 public:
  static absl::StatusOr<std::unique_ptr<ReadOnlyDb>> Open(
      rocksdb::Options options, const DiskPlan& plan, const std::string& path,
      const std::vector<std::string>& families, rocksdb::WALRecoveryMode mode) {
    options.wal_recovery_mode = mode;
    options.listeners.clear();
    // Every table, not the first few: each is checked when it is opened.
    options.max_open_files = -1;
    auto out = std::make_unique<ReadOnlyDb>();
    rocksdb::DB* db = nullptr;
    const rocksdb::Status opened = rocksdb::DB::OpenForReadOnly(
        options, path, DescribeFamilies(options, plan, families),
        &out->handles_, &db);
    if (!opened.ok()) return FromRocksDb(opened, "RocksDB");
    out->db_.reset(db);
    return out;
  }
  ~ReadOnlyDb() {
    for (auto* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  }

  uint64_t sequence() const { return db_->GetLatestSequenceNumber(); }
  rocksdb::Status GetFormat(std::string* record) const {
    return db_->Get({}, db_->DefaultColumnFamily(), FormatKey(), record);
  }
  bool HasMetaKeys() const {
    const std::unique_ptr<rocksdb::Iterator> it(
        db_->NewIterator({}, db_->DefaultColumnFamily()));
    it->SeekToFirst();
    return it->Valid() || !it->status().ok();
  }

 private:
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
};

}  // namespace

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
    const OpenCheckTarget& target, const rocksdb::Options& options,
    const DiskPlan& plan, const std::optional<LedgerRecord>& ledger) {
  using Mode = rocksdb::WALRecoveryMode;
  const std::string& dir = target.dir;
  const std::string& path = target.path;
  const std::span<const Family> wanted = target.families;
  OpenCheck check;
  std::error_code error;
  if (!fs::exists(path + "/CURRENT", error)) {
    if (ledger || HasData(path)) {
      return WouldNotOpen(dir,
                          absl::DataLossError("the file CURRENT is missing"));
    }
    check.is_empty = true;
    check.families = {"default"};
    return check;
  }
  if (ledger) {
    const absl::Status checked = CheckManifest(*ledger, path);
    if (!checked.ok()) return WouldNotOpen(dir, checked);
  }
  const rocksdb::Status listed =
      rocksdb::DB::ListColumnFamilies(options, path, &check.families);
  if (!listed.ok()) {
    return WouldNotOpen(dir, FromRocksDb(listed, "MANIFEST"));
  }

  const auto open = [&](Mode mode) {
    return ReadOnlyDb::Open(options, plan, path, check.families, mode);
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
      return WouldNotOpen(dir, strict);
    }
    XC_LOG_WARN("the log of the store has a torn end", "dir={} detail={}",
                LogValue(dir), LogValue(std::string(strict.message())));
    check.recovery_mode = Mode::kPointInTimeRecovery;
    check.has_torn_log = true;
  }
  if (!db.ok()) return WouldNotOpen(dir, db.status());
  if (ledger && (*db)->sequence() < ledger->synced_sequence) {
    return WouldNotOpen(
        dir, absl::DataLossError(absl::StrCat(
                 "it was synced up to record ", ledger->synced_sequence,
                 " and now ends at ", (*db)->sequence())));
  }

  std::string record;
  const rocksdb::Status got = (*db)->GetFormat(&record);
  if (got.ok()) {
    const absl::Status checked = CheckFormat(record, target.format);
    if (absl::IsDataLoss(checked)) return WouldNotOpen(dir, checked);
    if (!checked.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("store ", dir, ": ", checked.message()));
    }
    for (const Family family : wanted) {
      if (std::find(check.families.begin(), check.families.end(),
                    FamilyName(family)) == check.families.end()) {
        return WouldNotOpen(
            dir, absl::DataLossError(absl::StrCat(
                     "column family ", std::string(FamilyName(family)),
                     " is missing")));
      }
    }
    return check;
  }
  if (!got.IsNotFound() || ledger) {
    return WouldNotOpen(dir, FromRocksDb(got, "format record"));
  }
  // Its making was cut off before the last step: then it holds nothing yet.
  check.is_empty = true;
  const bool has_other = std::any_of(
      check.families.begin(), check.families.end(),
      [&](const std::string& name) {
        return std::none_of(wanted.begin(), wanted.end(),
                            [&](Family f) { return FamilyName(f) == name; });
      });
  if (has_other || (*db)->HasMetaKeys()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " holds a RocksDB that is not a store of XCache"));
  }
  return check;
}

}  // namespace xcache
