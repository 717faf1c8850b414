// The file system that RocksDB gets. It passes everything on, and watches three
// kinds of files: no byte of a table reaches RocksDB that has not been checked,
// no record of a log that it would read for ever, and what is synced of a
// MANIFEST is noted in the ledger before RocksDB relies on it.
#ifndef XCACHE_CACHESTORE_ROCKSDB_FILE_SYSTEM_H_
#define XCACHE_CACHESTORE_ROCKSDB_FILE_SYSTEM_H_

#include <memory>

#include "cachestore/rocksdb/sync_ledger.h"
#include "rocksdb/env.h"

namespace xcache {

// Over `base` (null: the default). `ledger` may be null: nothing is noted. Both
// must outlive the environment, which must outlive the database. Tables of
// stores of format 1 have no checksums.
std::unique_ptr<rocksdb::Env> MakeStoreEnv(rocksdb::Env* base,
                                           SyncLedger* ledger,
                                           bool tables_have_sums = true);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_FILE_SYSTEM_H_
