// What time it is for sessions, when the wall clock is not to be believed.
#include "server/core/sessions/clock.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>

namespace xcache {
namespace {

constexpr int64_t kHour = 3600 * 1000;
constexpr int64_t kDay = 24 * kHour;
constexpr int64_t kNow = 20000 * kDay;

class SessionClockTest : public ::testing::Test {
 protected:
  // Time goes by, on both clocks.
  void Pass(int64_t ms) {
    wall_ms_ += ms;
    monotonic_ms_ += ms;
  }
  // The same, looked at every hour, as the sweeper does.
  void PassHours(int64_t hours) {
    for (int64_t i = 0; i < hours; ++i) {
      Pass(kHour);
      clock_.ExpiryMs();
    }
  }
  void ExpectBelieved() {
    EXPECT_EQ(clock_.StampMs(), wall_ms_);
    EXPECT_EQ(clock_.ExpiryMs(), wall_ms_);
    EXPECT_EQ(clock_.JumpMs(), 0);
  }

  int64_t wall_ms_ = kNow;
  int64_t monotonic_ms_ = 5000;
  SessionClock clock_{[this] { return wall_ms_; },
                      [this] { return monotonic_ms_; }};
};

TEST_F(SessionClockTest, TellsTheWallClocksTimeWhileTheClocksAgree) {
  clock_.Start(0);
  ExpectBelieved();
  for (int i = 0; i < 100; ++i) {
    Pass(kHour);
    wall_ms_ += 5000;  // a time server's corrections
    ExpectBelieved();
  }
}

TEST_F(SessionClockTest, AheadStampsAreOfTheWallAndExpiriesAreNot) {
  clock_.Start(kNow - kHour);
  wall_ms_ += 8 * kDay;
  Pass(kHour);
  EXPECT_EQ(clock_.ExpiryMs(), kNow + kHour);
  EXPECT_EQ(clock_.StampMs(), wall_ms_);
  EXPECT_EQ(clock_.JumpMs(), 8 * kDay);
  wall_ms_ -= 8 * kDay;
  ExpectBelieved();
}

TEST_F(SessionClockTest, BehindStampsGoOn) {
  clock_.Start(kNow - kHour);
  wall_ms_ -= 3 * kDay;
  Pass(kHour);
  EXPECT_EQ(clock_.StampMs(), kNow + kHour);
  EXPECT_EQ(clock_.ExpiryMs(), wall_ms_);
  EXPECT_EQ(clock_.JumpMs(), -3 * kDay);
}

TEST_F(SessionClockTest, AClockThatGoesOnSteadilyIsBelievedAfterADay) {
  clock_.Start(0);
  wall_ms_ += 8 * kDay;
  clock_.ExpiryMs();
  PassHours(23);
  EXPECT_EQ(clock_.JumpMs(), 8 * kDay);
  PassHours(1);
  ExpectBelieved();
}

TEST_F(SessionClockTest, AnotherJumpBeginsTheWaitAnew) {
  clock_.Start(0);
  wall_ms_ += 8 * kDay;
  clock_.ExpiryMs();
  PassHours(23);
  wall_ms_ += kDay;
  clock_.ExpiryMs();
  PassHours(23);
  EXPECT_EQ(clock_.JumpMs(), 9 * kDay);
  EXPECT_EQ(clock_.ExpiryMs(), kNow + 46 * kHour);
  PassHours(1);
  ExpectBelieved();
}

TEST_F(SessionClockTest, AStartLongAfterTheNewestSessionIsWaitedOut) {
  const int64_t newest = kNow - 8 * kDay;
  clock_.Start(newest);
  EXPECT_EQ(clock_.ExpiryMs(), newest);
  EXPECT_EQ(clock_.StampMs(), kNow) << "what happens now is not of last week";
  PassHours(24);
  ExpectBelieved();
}

TEST_F(SessionClockTest, AStartBeforeTheNewestSessionGoesOnFromIt) {
  clock_.Start(kNow + kDay);
  EXPECT_EQ(clock_.StampMs(), kNow + kDay);
  EXPECT_EQ(clock_.ExpiryMs(), kNow);
  // A machine without a clock of its own hears the time from the network.
  wall_ms_ += 2 * kDay;
  EXPECT_EQ(clock_.StampMs(), wall_ms_);
  EXPECT_EQ(clock_.ExpiryMs(), kNow + kDay);
}

TEST_F(SessionClockTest, AStartWithinADayOfTheNewestSessionIsBelieved) {
  clock_.Start(kNow - kDay);
  ExpectBelieved();
}

TEST(SessionClockSystemTest, TheSystemsClocksAgree) {
  SessionClock clock({}, {});
  clock.Start(0);
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  EXPECT_NEAR(static_cast<double>(clock.StampMs()), static_cast<double>(now),
              60000.0);
}

}  // namespace
}  // namespace xcache
