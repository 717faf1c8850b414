#include "server/frontend/trace_context.h"

#include <string>

#include "gtest/gtest.h"

namespace xcache {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kSpan[] = "b7ad6b7169203331";

std::string Header(const std::string& version, const std::string& flags) {
  return version + "-" + kTrace + "-" + kSpan + "-" + flags;
}

TEST(TraceContextTest, TheSpecificationsExampleIsRead) {
  const auto trace = ParseTraceparent(Header("00", "01"));
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->trace_id, kTrace);
  EXPECT_EQ(trace->span_id, kSpan);
  EXPECT_TRUE(trace->sampled);
}

TEST(TraceContextTest, SampledIsTheLastBitOfTheFlags) {
  const std::string digits = "0123456789abcdef";
  for (size_t i = 0; i < digits.size(); ++i) {
    const auto trace =
        ParseTraceparent(Header("00", std::string("f") + digits[i]));
    ASSERT_TRUE(trace.has_value());
    EXPECT_EQ(trace->sampled, i % 2 == 1) << digits[i];
  }
}

// Those that the specification's test suite sends, too.
TEST(TraceContextTest, WhatIsOfNoValidFormIsIgnored) {
  const std::string good = Header("00", "01");
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(ParseTraceparent(good.substr(0, size))) << size;
  }
  for (const std::string& bad :
       {good + "-", good + "-what", good + ".", " " + good, good + " ",
        Header("ff", "01"), Header("FF", "01"), Header("0x", "01"),
        Header("00", "0X"), Header("00", "A1"), Header("cc", "01") + ".more",
        std::string("00-00000000000000000000000000000000-") + kSpan + "-01",
        std::string("00-") + kTrace + "-0000000000000000-01",
        std::string("00-0AF7651916CD43DD8448EB211C80319C-") + kSpan + "-01"}) {
    EXPECT_FALSE(ParseTraceparent(bad)) << bad;
  }
  // Any other byte anywhere.
  for (size_t at = 0; at < good.size(); ++at) {
    for (const char c : {'g', ' ', '_', '\0', '\xff'}) {
      std::string bad = good;
      bad[at] = c;
      EXPECT_FALSE(ParseTraceparent(bad)) << at;
    }
  }
}

TEST(TraceContextTest, LaterVersionsAreReadAsFarAsTheyAreKnown) {
  for (const char* tail : {"", "-", "-what-the-future-will-be-like"}) {
    const auto trace = ParseTraceparent(Header("cc", "01") + tail);
    ASSERT_TRUE(trace.has_value()) << tail;
    EXPECT_EQ(trace->trace_id, kTrace);
  }
}

}  // namespace
}  // namespace xcache
