// A look at a database before it is opened for writing. Opening one deletes
// what its MANIFEST does not name: a store that has lost something must be
// found out before that, while a repair still can bring it back.
#ifndef XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_
#define XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "rocksdb/options.h"

namespace xcache {

// What the record in the meta family says: what a database is, and which
// version.
struct Format {
  std::string_view name;
  uint32_t version = 0;
};
inline constexpr Format kSessionsFormat = {"xcache-sessions", 2};
inline constexpr Format kPagesFormat = {"xcache-pages", 2};
// Sessions and pages in one database.
inline constexpr Format kStoreFormat1 = {"xcache-store", 1};
std::string FormatKey();
std::string FormatRecord(const Format& format);
// DATA_LOSS: not such a record; FAILED_PRECONDITION: of another version.
absl::Status CheckFormat(std::string_view record, const Format& format);

// Whether files with content lie in a database's folder.
bool HasData(const std::string& path);

// "store DIR would not open: ...", DATA_LOSS, with the way out.
absl::Status WouldNotOpen(const std::string& dir, const absl::Status& why);

struct OpenCheck {
  // Nothing is in it yet: new, or its making was cut off.
  bool is_empty = false;
  std::vector<std::string> families;  // that are there
  rocksdb::WALRecoveryMode recovery_mode =
      rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // The log ends in rubbish, as after a power loss; nothing synced is lost.
  bool has_torn_log = false;
};

// Which database is looked at, and what it is to be.
struct OpenCheckTarget {
  std::string dir;   // the store's
  std::string path;  // the database's
  Format format;
  std::span<const Family> families;
};

// Reads, and changes nothing. Errors: as CacheStore::Open.
absl::StatusOr<OpenCheck> CheckBeforeOpen(
    const OpenCheckTarget& target, const rocksdb::Options& options,
    const DiskPlan& plan, const std::optional<LedgerRecord>& ledger);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_
