// A database of sessions made anew from what is whole in another one: how a
// damaged store is repaired, and one of format 1 becomes one of today's.
#ifndef XCACHE_CACHESTORE_SESSIONS_REBUILD_H_
#define XCACHE_CACHESTORE_SESSIONS_REBUILD_H_

#include <string>

#include "absl/status/status.h"
#include "cachestore/cache_store.h"

namespace xcache {

// What is left to do of an earlier rebuild, and of a store of format 1, before
// the store is opened: sessions become a database of their own, the rest is the
// database of pages from now on. Nothing is changed where an error is returned.
// FAILED_PRECONDITION: in use, or the folder holds a store of each format;
// DATA_LOSS: it would not open, and may be repaired.
absl::Status PrepareFolder(const CacheStoreOptions& options);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_REBUILD_H_
