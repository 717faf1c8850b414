// Stop strings and UTF-8 boundaries, however the answer's bytes are split.
#include "server/core/scheduler/stop_matcher.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/utf8.h"

namespace xcache {
namespace {

struct Result {
  std::string text;
  std::string stop;
  std::vector<std::string> parts;
};

Result Feed(const std::vector<std::string>& stops,
            const std::vector<std::string>& parts) {
  StopMatcher matcher(stops);
  Result result;
  for (const std::string& part : parts) {
    std::string text;
    const bool stopped = matcher.Append(part, &text);
    result.text += text;
    result.parts.push_back(text);
    if (stopped) {
      result.stop = matcher.stop();
      return result;
    }
  }
  std::string text;
  matcher.Finish(&text);
  result.text += text;
  result.parts.push_back(text);
  return result;
}

std::vector<std::string> Bytes(std::string_view text) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  return parts;
}

TEST(StopMatcherTest, TextEndsBeforeTheStopString) {
  const Result result = Feed({"STOP"}, {"one ST", "OP two"});
  EXPECT_EQ(result.text, "one ");
  EXPECT_EQ(result.stop, "STOP");
}

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAStopString) {
  const Result result = Feed({"abcd"}, {"xab", "c", "e"});
  EXPECT_EQ(result.parts[0], "x");
  EXPECT_EQ(result.parts[1], "");
  EXPECT_EQ(result.parts[2], "abce");
}

TEST(StopMatcherTest, HeldBackTextComesAtTheEnd) {
  EXPECT_EQ(Feed({"abcd"}, {"xabc"}).text, "xabc");
}

TEST(StopMatcherTest, SelfOverlappingStopString) {
  const Result result = Feed({"aab"}, Bytes("aaab"));
  EXPECT_EQ(result.text, "a");
  EXPECT_EQ(result.stop, "aab");
}

TEST(StopMatcherTest, ResultDoesNotDependOnTheSplit) {
  const std::vector<std::string> stops = {"ab", "xabc", "\n\n", "caf\xC3\xA9"};
  const std::vector<std::string> texts = {"xxabc",
                                          "no stop at all",
                                          "a\nb\n\nc",
                                          "un caf\xC3\xA9 noir",
                                          "un caf\xC3\xA8 noir",
                                          "a",
                                          ""};
  for (const std::string& text : texts) {
    const Result whole = Feed(stops, {text});
    const Result split = Feed(stops, Bytes(text));
    EXPECT_EQ(whole.text, split.text) << text;
    EXPECT_EQ(whole.stop, split.stop) << text;
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      const Result two = Feed(stops, {text.substr(0, cut), text.substr(cut)});
      EXPECT_EQ(two.text, whole.text) << text << " cut at " << cut;
      EXPECT_EQ(two.stop, whole.stop) << text << " cut at " << cut;
    }
  }
}

TEST(StopMatcherTest, FirstToBeCompleteCountsAndTheLongestOfThose) {
  EXPECT_EQ(Feed({"bc", "abc"}, {"xabcd"}).stop, "abc");
  EXPECT_EQ(Feed({"abcd", "b"}, {"xabcd"}).stop, "b");
}

TEST(StopMatcherTest, CharactersAreNeverCut) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";
  const Result result = Feed({}, Bytes(text));
  EXPECT_EQ(result.text, text);
  for (const std::string& part : result.parts) {
    EXPECT_EQ(part, ToUtf8(part));
  }
}

TEST(StopMatcherTest, BytesThatAreNoUtf8AreReplaced) {
  EXPECT_EQ(Feed({}, {"a\xFF"
                      "b"})
                .text,
            "a\xEF\xBF\xBD"
            "b");
}

TEST(StopMatcherTest, ACharacterThatTheEndCutsOffIsDropped) {
  EXPECT_EQ(Feed({}, {"a\xE2\x82"}).text, "a");
  EXPECT_EQ(Feed({}, {"\xF0\x9F"}).text, "");
  EXPECT_EQ(Feed({"END"}, {"a\xE2\x82", "END"}).text, "a");
  // Within the answer it is no character, and never becomes one.
  EXPECT_EQ(Feed({}, {"a\xE2\x82", "b"}).text,
            "a\xEF\xBF\xBD\xEF\xBF\xBD"
            "b");
}

TEST(StopMatcherTest, WhatIsDroppedIsSettled) {
  StopMatcher matcher({});
  std::string text;
  matcher.Append("ab\xE2\x82", &text);
  EXPECT_EQ(matcher.settled_bytes(), 2u);
  matcher.Finish(&text);
  EXPECT_EQ(matcher.text_bytes(), 2u);
  EXPECT_EQ(matcher.settled_bytes(), 4u);
}

TEST(StopMatcherTest, SaysHowManyRawBytesTheTextIsMadeOf) {
  StopMatcher matcher({"END"});
  std::string text;
  EXPECT_FALSE(
      matcher.Append("ab\xFF"
                     "E",
                     &text));
  EXPECT_EQ(matcher.text_bytes(), 3u);
  EXPECT_TRUE(matcher.Append("ND", &text));
  EXPECT_EQ(matcher.text_bytes(), 3u);
  EXPECT_EQ(text, "ab\xEF\xBF\xBD");
}

}  // namespace
}  // namespace xcache
