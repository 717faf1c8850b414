#include "engine/xcache/page.h"

#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

constexpr size_t kHeader = 320;

Digest SomeDigest() {
  Digest digest;
  std::iota(digest.begin(), digest.end(), uint8_t{1});
  return digest;
}

std::vector<TokenId> SomeTokens() {
  std::vector<TokenId> tokens(kBlockTokens);
  for (int i = 0; i < kBlockTokens; ++i) {
    tokens[static_cast<size_t>(i)] = 1000 * i + 7;
  }
  return tokens;
}

std::string SomePage(size_t payload_bytes) {
  std::string page = BeginPage(SomeDigest(), 5, SomeTokens(), payload_bytes);
  uint8_t next = 17;
  for (uint8_t& byte : PagePayload(page)) byte = next += 31;
  FinishPage(page);
  return page;
}

// The page with a byte changed and, so that the field itself is checked, a
// checksum that fits.
std::string Patched(std::string page, size_t at, char value) {
  page[at] = value;
  FinishPage(page);
  return page;
}

TEST(PageTest, RoundTrips) {
  for (size_t payload_bytes : {size_t{0}, size_t{1}, size_t{1000}}) {
    const std::string page = SomePage(payload_bytes);
    ASSERT_EQ(page.size(), PageBytes(payload_bytes));
    const auto view = ParsePage(page);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(view->cache_fp, SomeDigest());
    EXPECT_EQ(view->block_index, 5);
    EXPECT_EQ(std::vector<TokenId>(view->tokens, view->tokens + kBlockTokens),
              SomeTokens());
    ASSERT_EQ(view->payload.size(), payload_bytes);
    EXPECT_EQ(
        std::memcmp(view->payload.data(), page.data() + kHeader, payload_bytes),
        0);
  }
}

// The document's offsets, byte by byte: a change here is a new version.
TEST(PageTest, LayoutIsAsDocumented) {
  const std::string page = SomePage(10);
  EXPECT_EQ(page.size(), 334u);
  EXPECT_EQ(page.substr(0, 16), std::string("XCPG\x01\x00\x40\x01"
                                            "\x00\x00\x00\x00\x40\x00\x00\x00",
                                            16));
  EXPECT_EQ(
      page.substr(16, 32),
      std::string(reinterpret_cast<const char*>(SomeDigest().data()), 32));
  EXPECT_EQ(page.substr(48, 8), std::string("\x05\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(page.substr(56, 8), std::string("\x0a\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(page.substr(64, 8), std::string("\x07\0\0\0\xef\x03\0\0", 8));
  uint32_t crc;
  std::memcpy(&crc, page.data() + 330, 4);
  EXPECT_EQ(crc, Crc32c(std::string_view(page).substr(0, 330)));
}

TEST(PageTest, EveryFlippedBitIsDataLoss) {
  const std::string page = SomePage(300);
  for (size_t at = 0; at < page.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = page;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      const auto view = ParsePage(bad);
      EXPECT_EQ(view.status().code(), absl::StatusCode::kDataLoss)
          << "byte " << at << " bit " << bit;
    }
  }
}

TEST(PageTest, EveryTruncationIsDataLoss) {
  const std::string page = SomePage(300);
  for (size_t n = 0; n < page.size(); ++n) {
    // A copy of that size, so that a sanitizer sees a read past its end.
    const std::vector<char> part(page.begin(),
                                 page.begin() + static_cast<ptrdiff_t>(n));
    EXPECT_EQ(ParsePage({part.data(), part.size()}).status().code(),
              absl::StatusCode::kDataLoss)
        << n;
  }
}

TEST(PageTest, TrailingBytesAreDataLoss) {
  EXPECT_EQ(ParsePage(SomePage(8) + '\0').status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(PageTest, WrongFieldsAreNamedEvenWithAFittingChecksum) {
  const struct {
    size_t at;
    char value;
    const char* field;
  } kCases[] = {
      {0, 'Y', "magic"},
      {4, 0, "format version"},
      {4, 3, "format version"},
      {6, 0x41, "header bytes"},
      {8, 1, "flags"},
      {11, 1, "flags"},
      {12, 63, "tokens"},
      {52, 1, "block index"},
      {55, char(0x80), "block index"},
      {56, 9, "payload bytes"},
      {63, 1, "payload bytes"},
      {67, char(0x80), "token 0"},
  };
  for (const auto& c : kCases) {
    const auto view = ParsePage(Patched(SomePage(8), c.at, c.value));
    EXPECT_EQ(view.status().code(), absl::StatusCode::kDataLoss) << c.at;
    EXPECT_THAT(std::string(view.status().message()), HasSubstr(c.field));
  }
}

// Version 2: a page of the most that its codec takes is cut to what it took.
TEST(PageTest, PagesMayShrinkBeforeTheyAreFinished) {
  std::string page = BeginPage(SomeDigest(), 5, SomeTokens(), 1000,
                               kVariablePageFormatVersion);
  for (uint8_t& byte : PagePayload(page)) byte = 7;
  ShrinkPage(page, 10);
  FinishPage(page);
  EXPECT_EQ(page.size(), PageBytes(10));
  const auto view = ParsePage(page);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->version, kVariablePageFormatVersion);
  EXPECT_EQ(std::vector<uint8_t>(view->payload.begin(), view->payload.end()),
            std::vector<uint8_t>(10, 7));
}

TEST(PageTest, MessageSaysExpectedAndFound) {
  EXPECT_EQ(ParsePage(Patched(SomePage(8), 4, 3)).status().message(),
            "page: format version: expected 1, found 3");
}

}  // namespace
}  // namespace xcache
