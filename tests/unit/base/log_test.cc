#include "engine/base/log.h"

#include "gtest/gtest.h"

namespace xcache {
namespace {

TEST(LogTest, UnknownLevelIsRefused) {
  EXPECT_TRUE(InitLogging("warn"));
  EXPECT_FALSE(InitLogging("loud"));
  EXPECT_TRUE(InitLogging("off"));
  EXPECT_TRUE(InitLogging("info"));
}

TEST(LogTest, ValuesAreQuotedWhereTheyNeedToBe) {
  EXPECT_EQ(LogValue("plain/path-1"), "plain/path-1");
  EXPECT_EQ(LogValue(""), "\"\"");
  EXPECT_EQ(LogValue("two words"), "\"two words\"");
  EXPECT_EQ(LogValue("a\"b\\c\nd"), "\"a\\\"b\\\\c\\nd\"");
}

}  // namespace
}  // namespace xcache
