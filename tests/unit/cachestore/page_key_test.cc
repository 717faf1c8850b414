#include "cachestore/page_key.h"

#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

void AppendField(std::string& out, const std::string& bytes) {
  for (int i = 0; i < 8; ++i) {
    out.push_back(static_cast<char>(uint64_t{bytes.size()} >> (8 * i)));
  }
  out += bytes;
}

// The bytes of FORMAT.md, built here by hand.
TEST(PageKeyTest, IsTheDigestOfTheDocumentedBytes) {
  const Digest cache_fp = Sha256Of("cache");
  const PageKey parent = Sha256Of("parent");
  const std::vector<int32_t> tokens = {1, 256, -1, 0x12345678};
  std::string bytes;
  AppendField(bytes, std::string(cache_fp.begin(), cache_fp.end()));
  AppendField(bytes, "tenant");
  AppendField(bytes, std::string(parent.begin(), parent.end()));
  AppendField(bytes, std::string("\x01\x00\x00\x00\x00\x01\x00\x00"
                                 "\xff\xff\xff\xff\x78\x56\x34\x12",
                                 16));
  EXPECT_EQ(ToHex(ComputePageKey(cache_fp, "tenant", parent, tokens)),
            ToHex(Sha256Of(bytes)));
}

TEST(PageKeyTest, EveryFieldChangesTheKey) {
  const Digest fp = Sha256Of("a");
  const std::vector<int32_t> tokens = {1, 2, 3};
  const std::vector<int32_t> fewer = {1, 2};
  const std::vector<int32_t> other = {1, 2, 4};
  std::set<PageKey> keys = {
      ComputePageKey(fp, "t", kRootPageKey, tokens),
      ComputePageKey(Sha256Of("b"), "t", kRootPageKey, tokens),
      ComputePageKey(fp, "u", kRootPageKey, tokens),
      ComputePageKey(fp, "", kRootPageKey, tokens),
      ComputePageKey(fp, "t", Sha256Of("p"), tokens),
      ComputePageKey(fp, "t", kRootPageKey, fewer),
      ComputePageKey(fp, "t", kRootPageKey, other),
      ComputePageKey(fp, "t", kRootPageKey, {}),
  };
  EXPECT_EQ(keys.size(), 8u);
}

}  // namespace
}  // namespace xcache
