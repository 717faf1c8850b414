// Finds pages in a blob file of RocksDB without RocksDB: after a repair that
// lost the MANIFEST no database refers to the blob files any more, yet each
// record in them is whole, named and checksummed.
#ifndef XCACHE_CACHESTORE_SESSIONS_BLOB_SALVAGE_H_
#define XCACHE_CACHESTORE_SESSIONS_BLOB_SALVAGE_H_

#include <cstdint>
#include <functional>
#include <string_view>

#include "cachestore/page_key.h"

namespace xcache {

// Calls fn(key, parent, page) for every intact page value in a blob file's
// bytes, in order. Returns how many there were.
int64_t SalvageBlobFile(
    std::string_view file,
    const std::function<void(const PageKey& key, const PageKey& parent,
                             std::string_view page)>& fn);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_BLOB_SALVAGE_H_
