// The database's options from the store's.
#ifndef XCACHE_CACHESTORE_ROCKSDB_STORE_OPTIONS_H_
#define XCACHE_CACHESTORE_ROCKSDB_STORE_OPTIONS_H_

#include <cstdint>

#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/database.h"

namespace xcache {

StoreDbOptions DbOptions(const CacheStoreOptions& options,
                         int64_t memory_cap_bytes);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_STORE_OPTIONS_H_
