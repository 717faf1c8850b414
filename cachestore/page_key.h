// The address of a page: a digest of everything its bytes depend on (rule R2).
#ifndef XCACHE_CACHESTORE_PAGE_KEY_H_
#define XCACHE_CACHESTORE_PAGE_KEY_H_

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/base/sha256.h"

namespace xcache {

using PageKey = Digest;

// The parent of a sequence's first page.
inline constexpr PageKey kRootPageKey{};

// SHA-256 over the length-prefixed fields cache_fp, tenant, parent key and
// token ids (FORMAT.md has the bytes). The tenant is part of every key of a
// chain, so tenants never share a page.
PageKey ComputePageKey(const Digest& cache_fp, std::string_view tenant,
                       const PageKey& parent, std::span<const int32_t> tokens);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_PAGE_KEY_H_
