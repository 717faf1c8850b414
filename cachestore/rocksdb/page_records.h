// The records of pages on disk (FORMAT.md): a page's value and its entry in the
// index of pages. Encoding and checking alone.
#ifndef XCACHE_CACHESTORE_ROCKSDB_PAGE_RECORDS_H_
#define XCACHE_CACHESTORE_ROCKSDB_PAGE_RECORDS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "cachestore/page_key.h"

namespace xcache {

std::string_view KeyBytes(const PageKey& key);
// Nothing: not the length of a key.
std::optional<PageKey> ParseKeyBytes(std::string_view bytes);

// What is known of a page. It stands in the index, and once more behind the
// page's bytes in its value: at the end, so that a value that was read becomes
// the page by cutting it off.
struct PageEntry {
  PageKey parent{};
  uint32_t num_bytes = 0;
  uint32_t crc = 0;     // of the page's bytes
  uint64_t put_us = 0;  // Unix time
};
inline constexpr size_t kPageEntryBytes = 56;
std::string EncodePageEntry(const PageKey& key, const PageEntry& entry);
// DATA_LOSS: not the entry that was put under `key`.
absl::StatusOr<PageEntry> DecodePageEntry(const PageKey& key,
                                          std::string_view bytes);
// The entry in a page's value. DATA_LOSS: not the value that was put under
// `key`.
absl::StatusOr<PageEntry> CheckPageValue(const PageKey& key,
                                         std::string_view value);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_PAGE_RECORDS_H_
