#include "server/grpc/call.h"

#include <chrono>

#include "gtest/gtest.h"

namespace xcache {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

const SteadyTime kStart = SteadyTime() + hours(1);

TEST(ToSteadyTest, KeepsTheTimeThatIsLeft) {
  const auto now = std::chrono::system_clock::now();
  EXPECT_EQ(ToSteady(now + seconds(3), now, kStart), kStart + seconds(3));
  EXPECT_EQ(ToSteady(now - seconds(3), now, kStart), kStart - seconds(3));
  EXPECT_EQ(ToSteady(std::chrono::system_clock::time_point::max(), now, kStart),
            SteadyTime::max());
}

TEST(AtDeadlineTest, AllowsForTheClientsClockToRingFirst) {
  const SteadyTime end = kStart + seconds(10);
  EXPECT_TRUE(AtDeadline(kStart, end, end));
  EXPECT_TRUE(AtDeadline(kStart, end, end - milliseconds(100)));
  EXPECT_FALSE(AtDeadline(kStart, end, end - milliseconds(200)));
  const SteadyTime soon = kStart + milliseconds(50);
  EXPECT_TRUE(AtDeadline(kStart, soon, soon - milliseconds(1)));
  EXPECT_FALSE(AtDeadline(kStart, soon, soon - milliseconds(5)));
}

TEST(AtDeadlineTest, NoDeadlineIsNeverReached) {
  EXPECT_FALSE(AtDeadline(kStart, SteadyTime::max(), kStart + hours(9)));
}

TEST(PeerAddressTest, IsWhatTheListenerCallsThePeer) {
  EXPECT_EQ(PeerAddress("ipv4:127.0.0.1:5"), "127.0.0.1:5");
  EXPECT_EQ(PeerAddress("ipv6:%5B::1%5D:5"), "[::1]:5");
  EXPECT_EQ(PeerAddress("ipv6:[::1]:5"), "[::1]:5");
}

}  // namespace
}  // namespace xcache
