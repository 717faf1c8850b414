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
  const gpr_timespec now = gpr_now(GPR_CLOCK_MONOTONIC);
  const gpr_timespec three = gpr_time_from_millis(3250, GPR_TIMESPAN);
  EXPECT_EQ(ToSteady(gpr_time_add(now, three), now, kStart),
            kStart + milliseconds(3250));
  EXPECT_EQ(ToSteady(gpr_time_sub(now, three), now, kStart),
            kStart - milliseconds(3250));
  EXPECT_EQ(ToSteady(gpr_inf_future(GPR_CLOCK_MONOTONIC), now, kStart),
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
