// A page as an object of the shared store: its name, and the envelope around
// its bytes (FORMAT.md). Bytes alone: it asks no store.
#ifndef XCACHE_CACHESTORE_SHARED_PAGE_OBJECT_H_
#define XCACHE_CACHESTORE_SHARED_PAGE_OBJECT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "cachestore/page_key.h"

namespace xcache {

inline constexpr size_t kPageEnvelopeBytes = 88;
inline constexpr int kPageFolders = 256;

// "pages/1f/", of 0 to kPageFolders - 1.
std::string PageFolder(int number);
// "pages/1f/1f20...": the key's hexadecimal digits, in the folder of the first
// two. Nothing of the page's content is in it.
std::string PageObjectName(const PageKey& key);

struct PageEnvelope {
  PageKey key{};
  PageKey parent{};
  int64_t put_unix_ms = 0;
};

std::string WrapPage(const PageEnvelope& envelope, std::string_view page);

// Checks every byte. The page is what stands behind the envelope. DATA_LOSS:
// what was expected and found.
absl::StatusOr<PageEnvelope> ReadPageEnvelope(std::string_view object);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_PAGE_OBJECT_H_
