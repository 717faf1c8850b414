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
      {.per_connection = 3, .in_all = 8},
      [this](const std::string& peer) { closed_.push_back(peer); }};
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

TEST_F(FloodGuardTest, ManyTogetherAreOneAndThoseThatHaveMostGo) {
  const int three_ = 0, four_ = 0;
  for (const int* busy : {&one_, &two_, &three_}) guard_.Arrive(busy, "");
  guard_.Arrive(&one_, "1.1.1.1:1");
  guard_.Arrive(&two_, "2.2.2.2:2");
  guard_.Arrive(&four_, "4.4.4.4:4");
  // Each has no more than one may have; 3 and 3 and 2 and 1 are more than 8.
  for (const int* busy : {&one_, &two_}) {
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(guard_.Begin(busy));
  }
  EXPECT_TRUE(guard_.Begin(&four_));
  EXPECT_TRUE(guard_.Begin(&three_));
  EXPECT_THAT(closed_, IsEmpty());
  EXPECT_TRUE(guard_.Begin(&three_));
  EXPECT_THAT(closed_, ElementsAre("1.1.1.1:1", "2.2.2.2:2"));
  // What they began is forgotten with them.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(guard_.Begin(&one_));
  EXPECT_EQ(closed_.size(), 2u);
}

TEST_F(FloodGuardTest, BeginsAnewAfterAFlood) {
  for (int i = 0; i < 4; ++i) guard_.Begin(&one_);
  EXPECT_EQ(closed_.size(), 1u);
  EXPECT_TRUE(guard_.Begin(&one_));
}

}  // namespace
}  // namespace xcache
