// A look at a database before it is opened for writing. Opening one deletes
// what its MANIFEST does not name: a store that has lost something must be
// found out before that, while a repair still can bring it back.
#ifndef XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_
#define XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "rocksdb/db.h"
#include "rocksdb/options.h"

namespace xcache {

// What the record under FormatKey(), which is of no family, says: what a
// database is, and which version.
struct Format {
  std::string_view name;
  uint32_t version = 0;
};
inline constexpr Format kSessionsFormat = {"xcache-sessions", 2};
inline constexpr Format kPagesFormat = {"xcache-pages", 2};
// Sessions and pages in one database, in column families of RocksDB.
inline constexpr Format kStoreFormat1 = {"xcache-store", 1};
std::string FormatKey();
std::string FormatRecord(const Format& format);
// DATA_LOSS: not such a record; FAILED_PRECONDITION: of another version.
absl::Status CheckFormat(std::string_view record, const Format& format);

// Whether files with content lie in a database's folder.
bool HasData(const std::string& path);

// "store DIR would not open: ...", DATA_LOSS, with the way out.
absl::Status WouldNotOpen(const std::string& dir, const absl::Status& why);

// Calls fn(family, key, value) for the records that can be read, perhaps twice:
// of a column family of RocksDB. Format 1 has one for each family of keys,
// today "default" has them all.
using RecordFn = std::function<void(Family family, std::string_view key,
                                    std::string_view value)>;
void ForEachRecord(rocksdb::Iterator& it, std::string_view column_family,
                   const RecordFn& fn);

// A database opened for reading, for as long as one looks at it.
class ReadOnlyDb {
 public:
  static absl::StatusOr<std::unique_ptr<ReadOnlyDb>> Open(
      rocksdb::Options options, const std::string& path);
  ~ReadOnlyDb();

  uint64_t sequence() const { return db_->GetLatestSequenceNumber(); }
  rocksdb::Status GetFormat(std::string* record) const;
  // A table in the folder that is none of its; empty: there is none.
  std::string TableLeftOut(const std::string& path) const;
  // Whether there are no keys of today's.
  bool IsEmpty() const;
  void ForEachRecord(const RecordFn& fn) const;

 private:
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
};

struct OpenCheck {
  // Nothing is in it yet: new, or its making was cut off.
  bool is_empty = false;
  rocksdb::WALRecoveryMode recovery_mode =
      rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // The log ends in rubbish, as after a power loss; nothing synced is lost.
  bool has_torn_log = false;
};

// Looks at the database in `path` of the store `dir`, which is to be of that
// format. Changes nothing. Errors: as CacheStore::Open.
absl::StatusOr<OpenCheck> CheckBeforeOpen(
    const std::string& dir, const std::string& path, const Format& format,
    const rocksdb::Options& options, const std::optional<LedgerRecord>& ledger);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_OPEN_CHECK_H_
