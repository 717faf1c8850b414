#include "cachestore/store_look.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "cachestore/coding.h"
#include "cachestore/store_db.h"
#include "cachestore/store_records.h"
#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/db.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

constexpr char kFormatName[] = "xcache-store";
constexpr uint32_t kLedgerMagic = 0x47444c58;  // "XLDG"
constexpr size_t kLedgerBytes = 16;

std::string LedgerPath(const std::string& dir) { return dir + "/ledger"; }

// A database opened for reading, for as long as one looks at it.
class ReadOnlyDb {
 public:
  static absl::StatusOr<std::unique_ptr<ReadOnlyDb>> Open(
      rocksdb::Options options, const DiskPlan& plan, const std::string& path,
      const std::vector<std::string>& families, rocksdb::WALRecoveryMode mode) {
    options.wal_recovery_mode = mode;
    options.listeners.clear();
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

// Whether files with content lie in a folder that has no CURRENT.
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

absl::Status CheckFormat(const std::string& dir, const std::string& record,
                         const std::vector<std::string>& families) {
  FieldReader r(record);
  const std::string_view name = r.Bytes();
  const auto version = r.Int<uint32_t>();
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || name != kFormatName ||
      crc != Crc32c(std::string_view(record).substr(
                 0, record.size() - sizeof(crc)))) {
    return WouldNotOpen(dir, absl::DataLossError("bad format record"));
  }
  if (version != kStoreFormatVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("store ", dir, " has format version ", version,
                     ", this program reads version ", kStoreFormatVersion));
  }
  for (Family family : kFamilies) {
    if (std::find(families.begin(), families.end(), FamilyName(family)) ==
        families.end()) {
      return WouldNotOpen(
          dir, absl::DataLossError(absl::StrCat("column family ",
                                                std::string(FamilyName(family)),
                                                " is missing")));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<uint64_t> ReadLedger(const std::string& dir) {
  std::ifstream in(LedgerPath(dir), std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  FieldReader r(bytes);
  const auto magic = r.Int<uint32_t>();
  const auto sequence = r.Int<uint64_t>();
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || r.remaining() != 0 || magic != kLedgerMagic ||
      crc != Crc32c(bytes.data(), kLedgerBytes - sizeof(crc))) {
    return std::nullopt;
  }
  return sequence;
}

absl::Status WriteLedger(const std::string& dir, uint64_t synced_sequence,
                         bool sync) {
  std::string bytes;
  FieldWriter w(bytes);
  w.Int(kLedgerMagic);
  w.Int(synced_sequence);
  w.Int(Crc32c(bytes));
  // In place: a write this small is whole or, after a power loss, fails its
  // checksum and is no evidence.
  const int fd =
      ::open(LedgerPath(dir).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot open the ledger of ", dir, ": ", std::strerror(errno)));
  }
  const bool written = ::pwrite(fd, bytes.data(), bytes.size(), 0) ==
                           static_cast<ssize_t>(bytes.size()) &&
                       (!sync || ::fsync(fd) == 0);
  const int error = errno;
  ::close(fd);
  if (written) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("cannot write the ledger of ", dir,
                                             ": ", std::strerror(error)));
}

void RemoveLedger(const std::string& dir) { ::unlink(LedgerPath(dir).c_str()); }

std::string FormatKey() { return "format"; }

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
                   "; --repair keeps every record in it that is whole"));
}

absl::StatusOr<StoreLook> LookAtStore(const std::string& dir,
                                      const std::string& path,
                                      const rocksdb::Options& options,
                                      const DiskPlan& plan,
                                      std::optional<uint64_t> ledger) {
  using Mode = rocksdb::WALRecoveryMode;
  StoreLook look;
  std::error_code error;
  if (!fs::exists(path + "/CURRENT", error)) {
    if (ledger || HasData(path)) {
      return WouldNotOpen(dir,
                          absl::DataLossError("the file CURRENT is missing"));
    }
    look.is_empty = true;
    look.families = {"default"};
    return look;
  }
  const rocksdb::Status listed =
      rocksdb::DB::ListColumnFamilies(options, path, &look.families);
  if (!listed.ok()) {
    return WouldNotOpen(dir, FromRocksDb(listed, "MANIFEST"));
  }

  const auto open = [&](Mode mode) {
    return ReadOnlyDb::Open(options, plan, path, look.families, mode);
  };
  auto db = open(look.recovery_mode);
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
    look.recovery_mode = Mode::kPointInTimeRecovery;
    look.has_torn_log = true;
  }
  if (!db.ok()) return WouldNotOpen(dir, db.status());
  if (ledger && (*db)->sequence() < *ledger) {
    return WouldNotOpen(dir, absl::DataLossError(absl::StrCat(
                                 "it was synced up to record ", *ledger,
                                 " and now ends at ", (*db)->sequence())));
  }

  std::string record;
  const rocksdb::Status got = (*db)->GetFormat(&record);
  if (got.ok()) {
    XC_RETURN_IF_ERROR(CheckFormat(dir, record, look.families));
    return look;
  }
  if (!got.IsNotFound() || ledger) {
    return WouldNotOpen(dir, FromRocksDb(got, "format record"));
  }
  // Its making was cut off before the last step: then it holds nothing yet.
  look.is_empty = true;
  const bool has_other = std::any_of(
      look.families.begin(), look.families.end(), [](const std::string& name) {
        return std::none_of(kFamilies.begin(), kFamilies.end(),
                            [&](Family f) { return FamilyName(f) == name; });
      });
  if (has_other || (*db)->HasMetaKeys()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " holds a RocksDB that is not a store of XCache"));
  }
  return look;
}

}  // namespace xcache
