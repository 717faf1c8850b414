#include "server/frontend/flood_guard.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FloodGuardTest : public ::testing::Test {
 protected:
  std::vector<std::string> closed_;
  FloodGuard guard_{
      3, [this](const std::string& peer) { closed_.push_back(peer); }};
  const int one_ = 0, two_ = 0;
};

TEST_F(FloodGuardTest, CallsThatArriveAreNoFlood) {
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(guard_.Begin(&one_));
    guard_.Arrive(&one_, "1.2.3.4:5");
  }
  // As many at once as there may be.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(guard_.Begin(&one_));
  EXPECT_THAT(closed_, IsEmpty());
}

TEST_F(FloodGuardTest, CallsThatNeverArriveAre) {
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(guard_.Begin(&one_));
  EXPECT_TRUE(guard_.Begin(&two_));
  EXPECT_FALSE(guard_.Begin(&one_));
  EXPECT_THAT(closed_, ElementsAre(""));  // nobody knows which it was
  // Of another one it is known, from a call before.
  guard_.Arrive(&two_, "1.2.3.4:5");
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(guard_.Begin(&two_));
  EXPECT_FALSE(guard_.Begin(&two_));
  EXPECT_THAT(closed_, ElementsAre("", "1.2.3.4:5"));
}

TEST_F(FloodGuardTest, BeginsAnewAfterAFlood) {
  for (int i = 0; i < 4; ++i) guard_.Begin(&one_);
  EXPECT_EQ(closed_.size(), 1u);
  EXPECT_TRUE(guard_.Begin(&one_));
}

}  // namespace
}  // namespace xcache
