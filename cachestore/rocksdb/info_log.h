// RocksDB's own log lines, in ours. It would write them to a file of its own
// beside the data, and a build with assertions stops the process where that
// file meets a full disk.
#ifndef XCACHE_CACHESTORE_ROCKSDB_INFO_LOG_H_
#define XCACHE_CACHESTORE_ROCKSDB_INFO_LOG_H_

#include <memory>
#include <string>

#include "rocksdb/env.h"

namespace xcache {

// For the database in the folder `path`. Warnings and worse are lines of level
// debug: what is to be done about them is said where it is done.
std::shared_ptr<rocksdb::Logger> MakeInfoLog(std::string path);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_INFO_LOG_H_
