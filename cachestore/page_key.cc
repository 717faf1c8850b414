#include "cachestore/page_key.h"

#include <string>

namespace xcache {

PageKey ComputePageKey(const Digest& cache_fp, std::string_view tenant,
                       const PageKey& parent, std::span<const int32_t> tokens) {
  // Token ids as little-endian bytes, whatever the machine.
  std::string ids;
  ids.reserve(tokens.size() * 4);
  for (int32_t token : tokens) {
    const auto u = static_cast<uint32_t>(token);
    for (int shift = 0; shift < 32; shift += 8) {
      ids.push_back(static_cast<char>((u >> shift) & 0xff));
    }
  }
  const auto view = [](const Digest& d) {
    return std::string_view(reinterpret_cast<const char*>(d.data()), d.size());
  };
  return Sha256()
      .Field(view(cache_fp))
      .Field(tenant)
      .Field(view(parent))
      .Field(ids)
      .Finish();
}

}  // namespace xcache
