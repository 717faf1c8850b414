// Token files of any bytes: what is taken has, for each line with words, a
// token that is found and the tenant that stands behind it, or a tenant's
// limits, within their bounds.
#include <set>
#include <sstream>
#include <string>
#include <string_view>

#include "server/frontend/auth.h"
#include "tests/fuzz/fuzz.h"

using xcache::TokenTable;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto table = TokenTable::Parse(text);
  if (!table.ok()) {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(table.status()));
    return 0;
  }
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  std::istringstream in(text.starts_with(kByteOrderMark)
                            ? text.substr(kByteOrderMark.size())
                            : text);
  size_t found = 0;
  std::set<std::string> limited;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string token, tenant;
    if (!(words >> token)) continue;
    words >> tenant;
    XCACHE_FUZZ_CHECK((*table)->policies().contains(tenant));
    if (token == "tenant") {
      XCACHE_FUZZ_CHECK(limited.insert(tenant).second);
      XCACHE_FUZZ_CHECK((*table)->Find(token) == nullptr);
      continue;
    }
    const std::string* have = (*table)->Find(token);
    XCACHE_FUZZ_CHECK(have != nullptr && *have == tenant);
    XCACHE_FUZZ_CHECK(xcache::IsTenantName(*have));
    ++found;
  }
  XCACHE_FUZZ_CHECK(found > 0 && found == (*table)->size());
  for (const auto& [tenant, policy] : (*table)->policies()) {
    XCACHE_FUZZ_CHECK(xcache::IsTenantName(tenant));
    XCACHE_FUZZ_CHECK(policy.weight >= 1 &&
                      policy.weight <= xcache::kMaxTenantWeight);
    const bool has_limits = policy != xcache::TenantPolicy();
    XCACHE_FUZZ_CHECK(!has_limits || limited.contains(tenant));
    for (const auto& limit : policy.limits) {
      XCACHE_FUZZ_CHECK(!limit.has_value() ||
                        (*limit >= 1 && *limit <= int64_t{1} << 53));
    }
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"# tokens\n\n  abc  alice # hers\nd-e_f.g bob\r\n#x y\n",
          "old t\nnew t",
          "\xEF\xBB\xBF"
          "abc alice\n",
          "a a\na b\n",
          "abc alice\ntenant alice weight=3 requests=8 queued-tokens=20000 "
          "tokens-per-minute=60000 sessions=100 page-bytes=2GiB\n",
          "tenant bob requests=1\nx y\ntenant bob sessions=1\n"};
}
