#include "engine/base/nearest_name.h"

#include <string>

#include "gtest/gtest.h"

namespace xcache {
namespace {

const std::vector<std::string> kNames = {"chat", "ask",   "sessions",
                                         "info", "stats", "--temperature"};

TEST(NearestNameTest, FindsWhatWasMeant) {
  EXPECT_EQ(NearestName("caht", kNames), "chat");  // swapped
  EXPECT_EQ(NearestName("chatt", kNames), "chat");
  EXPECT_EQ(NearestName("cht", kNames), "chat");
  EXPECT_EQ(NearestName("akk", kNames), "ask");
  EXPECT_EQ(NearestName("sess", kNames), "sessions");  // begun
  EXPECT_EQ(NearestName("--temprature", kNames), "--temperature");
  EXPECT_EQ(NearestName("chat", kNames), "chat");
}

TEST(NearestNameTest, DoesNotGuessWhatIsFar) {
  EXPECT_EQ(NearestName("frobnicate", kNames), "");
  EXPECT_EQ(NearestName("x", kNames), "");
  EXPECT_EQ(NearestName("", kNames), "");
  EXPECT_EQ(NearestName("chat", {}), "");
  EXPECT_EQ(NearestName(std::string(1000, 'c'), kNames), "");
  EXPECT_EQ(DidYouMean("frobnicate", kNames), "");
  EXPECT_EQ(DidYouMean("caht", kNames), " (did you mean chat?)");
}

}  // namespace
}  // namespace xcache
