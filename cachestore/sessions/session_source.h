// What a database of sessions is made anew from: a copy of another one, damaged
// or of an old format, opened as far as it goes. The other one is not touched.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_SOURCE_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_SOURCE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/sync_ledger.h"

namespace xcache {

class SessionSource {
 public:
  // Copies the database in `db_path` to the folder `scratch` (links where that
  // is enough) and opens the copy: as it is, where its MANIFEST is what the
  // ledger says and every table is fit for it; else after RocksDB's own repair
  // on the tables that are. An error is one of the copying; a copy that does
  // not open has no keys. `env` null: the real files.
  static absl::StatusOr<std::unique_ptr<SessionSource>> Open(
      const std::string& db_path, const std::string& scratch,
      const DiskPlan& plan, rocksdb::Env* env,
      const std::optional<LedgerRecord>& ledger);
  ~SessionSource();

  // Tables that RocksDB was not given.
  int64_t num_tables_dropped() const { return num_tables_dropped_; }

  // Adds the keys of a family that can be read, from both ends.
  void AddKeys(Family family, std::set<std::string>& keys) const;
  // False: not to be had.
  bool Get(Family family, const std::string& key, std::string* value) const;
  // What can be read of tables that RocksDB's repair leaves out because of a
  // damaged block: calls fn(key, value) with the last value of a key in each.
  void ReadLeftOut(Family family,
                   const std::function<void(const std::string& key,
                                            std::string value)>& fn) const;

 private:
  SessionSource(const DiskPlan& plan, rocksdb::Env* env, std::string path);
  bool OpenDb(bool strict);
  void DropDamagedTables();
  void Rebuild();
  rocksdb::ColumnFamilyHandle* Handle(Family family) const;

  const std::string path_;
  const DiskPlan plan_;
  std::unique_ptr<rocksdb::Env> env_;
  rocksdb::Options options_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
  int64_t num_tables_dropped_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_SOURCE_H_
