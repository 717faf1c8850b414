// A look at a database before it is opened for writing. Opening one deletes
// what its MANIFEST does not name: a store that has lost something must be
// found out before that, while a repair still can bring it back.
#ifndef XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_
#define XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "rocksdb/options.h"

namespace xcache {

// The record in the meta family that says what and which version a store is.
std::string FormatKey();
std::string FormatRecord();

// "store DIR would not open: ...", DATA_LOSS, with the way out.
absl::Status WouldNotOpen(const std::string& dir, const absl::Status& why);

struct StoreLook {
  // Nothing is in it yet: new, or its making was cut off.
  bool is_empty = false;
  std::vector<std::string> families;  // that are there
  rocksdb::WALRecoveryMode recovery_mode =
      rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // The log ends in rubbish, as after a power loss; nothing synced is lost.
  bool has_torn_log = false;
};

// Reads, and changes nothing but RocksDB's own info log. `path` is the
// database's folder in the store's, `dir`. Errors: as CacheStore::Open.
absl::StatusOr<StoreLook> LookAtStore(
    const std::string& dir, const std::string& path,
    const rocksdb::Options& options, const DiskPlan& plan,
    const std::optional<LedgerRecord>& ledger);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_
