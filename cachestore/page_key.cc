#include "cachestore/page_key.h"

#include <string>

#include "engine/base/coding.h"

namespace xcache {

PageKey ComputePageKey(const Digest& cache_fp, std::string_view tenant,
                       const PageKey& parent, std::span<const int32_t> tokens) {
  std::string ids;
  FieldWriter w(ids);
  for (const int32_t token : tokens) w.Int(token);
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
