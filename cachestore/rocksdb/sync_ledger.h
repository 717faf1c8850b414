// What a database must at least hold, in a small file in its folder (the
// ledger, FORMAT.md): how far its log is synced, and the bytes of the MANIFEST
// in force. A log or a MANIFEST that lost its end reads like one that never
// went further. RocksDB cannot tell these apart; with the ledger, a start can.
#ifndef XCACHE_CACHESTORE_ROCKSDB_SYNC_LEDGER_H_
#define XCACHE_CACHESTORE_ROCKSDB_SYNC_LEDGER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/base/mutex.h"

namespace xcache {

// The synced beginning of a file MANIFEST-<number>.
struct ManifestMark {
  uint64_t number = 0;  // 0: of none
  uint64_t num_bytes = 0;
  uint32_t crc = 0;  // CRC-32C of these bytes

  bool operator==(const ManifestMark&) const = default;
};

struct LedgerRecord {
  uint64_t synced_sequence = 0;  // RocksDB's
  ManifestMark current;          // what CURRENT named
  ManifestMark next;             // what CURRENT was about to name

  bool operator==(const LedgerRecord&) const = default;
};

std::string EncodeLedger(const LedgerRecord& record);
// Nothing: damaged.
std::optional<LedgerRecord> DecodeLedger(std::string_view bytes);

// Where the ledger of the database in the folder `db_path` is: in it.
std::string LedgerPath(const std::string& db_path);
// Nothing: there is none, or it is damaged itself; then it is no evidence.
std::optional<LedgerRecord> ReadLedger(const std::string& ledger_path);

// The number of the MANIFEST that the file CURRENT in a database's folder
// names; nothing: it names none.
std::optional<uint64_t> ReadCurrent(const std::string& db_path);
// The number in a file name (without its folder) of a MANIFEST.
std::optional<uint64_t> ParseManifestName(std::string_view name);

// Of all that it has now.
ManifestMark MarkManifest(const std::string& db_path, uint64_t number);
// DATA_LOSS: the MANIFEST in force has not got what the record says that it
// had, or is one from before it.
absl::Status CheckManifest(const LedgerRecord& record,
                           const std::string& db_path);

// Writes the ledger of an open store. Thread-safe. It lags where it cannot be
// written, and is never ahead of what is on disk.
class SyncLedger {
 public:
  explicit SyncLedger(std::string path) : path_(std::move(path)) {}
  ~SyncLedger();
  SyncLedger(const SyncLedger&) = delete;
  SyncLedger& operator=(const SyncLedger&) = delete;

  // From now on there is a file. `known`: what it says already; else what has
  // been noted so far goes into it, synced.
  absl::Status Start(const std::optional<LedgerRecord>& known);

  // The log is synced up to `sequence`. The file is written, not synced: after
  // a kill it has this, after a power loss it may lag.
  void LogSynced(uint64_t sequence);
  uint64_t synced_sequence() const XC_EXCLUDES(mu_);
  // A MANIFEST is synced as `mark` says, and `current` is the one in force (0:
  // none yet). The file is synced: what RocksDB deletes next is deleted because
  // of what that MANIFEST says.
  void ManifestSynced(const ManifestMark& mark, uint64_t current);

 private:
  absl::Status Failed(const char* what) const;
  absl::Status Write(bool sync) XC_REQUIRES(mu_);

  const std::string path_;
  mutable Mutex mu_;
  LedgerRecord record_ XC_GUARDED_BY(mu_);
  int fd_ XC_GUARDED_BY(mu_) = -1;  // -1: not started
  bool has_failed_ XC_GUARDED_BY(mu_) = false;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_SYNC_LEDGER_H_
