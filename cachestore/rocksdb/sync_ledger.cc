#include "cachestore/rocksdb/sync_ledger.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/file.h"
#include "engine/base/log.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x3247444c;  // "LDG2"
constexpr std::string_view kManifestPrefix = "MANIFEST-";

// Empty where it cannot be read.
std::string ReadFile(const std::string& path) {
  constexpr size_t kMoreThanAnyHas = size_t{256} << 20;
  return ReadSmallFile(path, kMoreThanAnyHas).value_or("");
}

std::string ManifestName(uint64_t number) {
  return absl::StrCat(std::string(kManifestPrefix),
                      absl::Dec(number, absl::kZeroPad6));
}

void WriteMark(FieldWriter& w, const ManifestMark& mark) {
  w.Int(mark.number);
  w.Int(mark.num_bytes);
  w.Int(mark.crc);
}

ManifestMark ReadMark(FieldReader& r) {
  ManifestMark mark;
  mark.number = r.Int<uint64_t>();
  mark.num_bytes = r.Int<uint64_t>();
  mark.crc = r.Int<uint32_t>();
  return mark;
}

}  // namespace

std::string EncodeLedger(const LedgerRecord& record) {
  std::string bytes;
  FieldWriter w(bytes);
  w.Int(kMagic);
  w.Int(record.synced_sequence);
  WriteMark(w, record.current);
  WriteMark(w, record.next);
  w.Int(Crc32c(bytes));
  return bytes;
}

std::optional<LedgerRecord> DecodeLedger(std::string_view bytes) {
  FieldReader r(bytes);
  const auto magic = r.Int<uint32_t>();
  LedgerRecord record;
  record.synced_sequence = r.Int<uint64_t>();
  record.current = ReadMark(r);
  record.next = ReadMark(r);
  const std::string_view body = bytes.substr(0, r.offset());
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || r.remaining() != 0 || magic != kMagic || crc != Crc32c(body)) {
    return std::nullopt;
  }
  return record;
}

std::string LedgerPath(const std::string& db_path) {
  return db_path + "/LEDGER";
}

std::optional<LedgerRecord> ReadLedger(const std::string& ledger_path) {
  return DecodeLedger(ReadFile(ledger_path));
}

std::optional<uint64_t> ParseManifestName(std::string_view name) {
  if (!name.starts_with(kManifestPrefix)) return std::nullopt;
  name.remove_prefix(kManifestPrefix.size());
  uint64_t number = 0;
  const char* const end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data(), end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return number;
}

std::optional<uint64_t> ReadCurrent(const std::string& db_path) {
  const std::string line = ReadFile(db_path + "/CURRENT");
  if (!line.ends_with('\n')) return std::nullopt;
  return ParseManifestName(std::string_view(line).substr(0, line.size() - 1));
}

ManifestMark MarkManifest(const std::string& db_path, uint64_t number) {
  const std::string bytes = ReadFile(db_path + "/" + ManifestName(number));
  return {number, bytes.size(), Crc32c(bytes)};
}

absl::Status CheckManifest(const LedgerRecord& record,
                           const std::string& db_path) {
  const std::optional<uint64_t> number = ReadCurrent(db_path);
  if (!number) return absl::DataLossError("the file CURRENT names no MANIFEST");
  const uint64_t last = std::max(record.current.number, record.next.number);
  // The ledger could not be written, and lags.
  if (*number > last) return absl::OkStatus();
  const ManifestMark& mark =
      *number == record.next.number ? record.next : record.current;
  if (*number != mark.number) {
    return absl::DataLossError(absl::StrCat("CURRENT names MANIFEST ", *number,
                                            ", the last one was ", last));
  }
  const std::string name = absl::StrCat(std::string(kManifestPrefix),
                                        absl::Dec(*number, absl::kZeroPad6));
  const std::string bytes =
      ReadFile(db_path + "/" + name).substr(0, mark.num_bytes);
  if (bytes.size() < mark.num_bytes) {
    return absl::DataLossError(absl::StrCat(name, " was synced up to byte ",
                                            mark.num_bytes, " and now has ",
                                            bytes.size()));
  }
  if (Crc32c(bytes) != mark.crc) {
    return absl::DataLossError(absl::StrCat(
        name, ": expected CRC-32C ", absl::Hex(mark.crc), " of its first ",
        mark.num_bytes, " bytes, found ", absl::Hex(Crc32c(bytes))));
  }
  return absl::OkStatus();
}

SyncLedger::~SyncLedger() {
  MutexLock lock(mu_);
  if (fd_ >= 0) ::close(fd_);
}

absl::Status SyncLedger::Failed(const char* what) const {
  return absl::ErrnoToStatus(
      errno, absl::StrCat("cannot ", what, " the ledger ", path_));
}

absl::Status SyncLedger::Write(bool sync) {
  if (fd_ < 0) return absl::OkStatus();
  const std::string bytes = EncodeLedger(record_);
  // In place: a write this small is whole or, after a power loss, fails its
  // checksum and is no evidence.
  if (::pwrite(fd_, bytes.data(), bytes.size(), 0) ==
          static_cast<ssize_t>(bytes.size()) &&
      (!sync || ::fdatasync(fd_) == 0)) {
    return absl::OkStatus();
  }
  const absl::Status status = Failed("write");
  if (!has_failed_) {
    XC_LOG_WARN("damage to the store may go unnoticed", "detail={}",
                LogValue(std::string(status.message())));
  }
  has_failed_ = true;
  return status;
}

absl::Status SyncLedger::Start(const std::optional<LedgerRecord>& known) {
  MutexLock lock(mu_);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd_ < 0) return Failed("open");
  if (known) {
    record_ = *known;
    return absl::OkStatus();
  }
  // What is there is damaged.
  if (::ftruncate(fd_, 0) != 0) return Failed("empty");
  return Write(/*sync=*/true);
}

void SyncLedger::LogSynced(uint64_t sequence) {
  MutexLock lock(mu_);
  if (sequence <= record_.synced_sequence) return;
  record_.synced_sequence = sequence;
  Write(/*sync=*/false).IgnoreError();
}

uint64_t SyncLedger::synced_sequence() const {
  MutexLock lock(mu_);
  return record_.synced_sequence;
}

void SyncLedger::ManifestSynced(const ManifestMark& mark, uint64_t current) {
  MutexLock lock(mu_);
  if (mark.number == current) {
    record_.current = mark;
    record_.next = {};
  } else {
    if (record_.next.number == current) record_.current = record_.next;
    // One of which nothing is known has at least no bytes.
    if (record_.current.number != current) record_.current = {current, 0, 0};
    record_.next = mark;
  }
  Write(/*sync=*/true).IgnoreError();
}

}  // namespace xcache
