#include "engine/base/utf8.h"

#include <cstdint>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

namespace xcache {
namespace {

TEST(Utf8Test, FindsTheFirstInvalidByte) {
  constexpr size_t kNone = std::string_view::npos;
  EXPECT_EQ(FindInvalidUtf8(""), kNone);
  EXPECT_EQ(FindInvalidUtf8("aé€🙂"), kNone);
  EXPECT_EQ(FindInvalidUtf8("\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"), kNone);
  EXPECT_EQ(FindInvalidUtf8("a\x80"), 1u);             // stray continuation
  EXPECT_EQ(FindInvalidUtf8("\xc0\x80"), 0u);          // overlong
  EXPECT_EQ(FindInvalidUtf8("\xe0\x9f\xbf"), 0u);      // overlong
  EXPECT_EQ(FindInvalidUtf8("\xed\xa0\x80"), 0u);      // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xf0\x8f\xbf\xbf"), 0u);  // overlong
  EXPECT_EQ(FindInvalidUtf8("\xf4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("\xf5\x80\x80\x80"), 0u);
  EXPECT_EQ(FindInvalidUtf8("ab\xe2\x82"), 2u);  // cut short
}

TEST(Utf8Test, DecodingInvertsAppending) {
  for (uint32_t code : {0x0u, 0x41u, 0x7fu, 0x80u, 0x7ffu, 0x800u, 0xd7ffu,
                        0xe000u, 0xffffu, 0x10000u, 0x10ffffu}) {
    std::string text;
    AppendUtf8(code, &text);
    EXPECT_EQ(FindInvalidUtf8(text), std::string_view::npos);
    EXPECT_EQ(Utf8Length(text), text.size());
    EXPECT_EQ(DecodeUtf8(text), code);
  }
}

TEST(Utf8Test, CompletePrefixHoldsBackOnlyWhatMayStillBecomeACharacter) {
  EXPECT_EQ(CompleteUtf8Prefix(""), 0u);
  EXPECT_EQ(CompleteUtf8Prefix("abc"), 3u);
  const std::string text = "é€🙂";  // 2, 3 and 4 bytes
  const size_t kWhole[] = {0, 0, 2, 2, 2, 5, 5, 5, 5, 9};
  for (size_t n = 0; n <= text.size(); ++n) {
    EXPECT_EQ(CompleteUtf8Prefix(std::string_view(text).substr(0, n)),
              kWhole[n])
        << n;
  }
  // Never a character: counts as whole.
  EXPECT_EQ(CompleteUtf8Prefix("a\xff"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("\x80\x80\x80"), 3u);
  EXPECT_EQ(CompleteUtf8Prefix("\xe0\x80"), 2u);  // overlong already
  EXPECT_EQ(CompleteUtf8Prefix("\xc0"), 1u);
}

TEST(Utf8Test, WhatIsNoCharacterIsReplaced) {
  EXPECT_EQ(ToUtf8("\xC3\xA9"), "\xC3\xA9");
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(ToUtf8("\xC0\xAF"), r + r);          // overlong
  EXPECT_EQ(ToUtf8("\xED\xA0\x80"), r + r + r);  // a surrogate
  EXPECT_EQ(ToUtf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(ToUtf8("a\xE2\x82"), "a" + r + r);  // cut short
  EXPECT_TRUE(IsUtf8(ToUtf8("\xE2\x82")));
  EXPECT_FALSE(IsUtf8("\xE2\x82"));
}

}  // namespace
}  // namespace xcache
