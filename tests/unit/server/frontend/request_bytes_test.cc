#include "server/frontend/request_bytes.h"

#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

TEST(RequestBytesTest, HoldsUpToItsLimitAndTakesBack) {
  RequestBytes bytes(100);
  auto first = bytes.Hold(60);
  ASSERT_TRUE(first.has_value());
  EXPECT_FALSE(bytes.Hold(41).has_value());
  EXPECT_TRUE(bytes.Hold(40).has_value());  // and gave it back at once
  RequestBytes::Held moved = *std::move(first);
  EXPECT_EQ(bytes.held(), 60);
  moved = RequestBytes::Held();
  first.reset();
  EXPECT_EQ(bytes.held(), 0);
}

TEST(RequestBytesTest, MayGoBeforeWhatItGave) {
  auto bytes = std::make_unique<RequestBytes>(100);
  auto held = bytes->Hold(60, "t");
  ASSERT_TRUE(held.has_value());
  bytes.reset();
  held.reset();
}

TEST(RequestBytesTest, NoTenantOfSeveralHoldsAll) {
  RequestBytes bytes(160);
  std::vector<RequestBytes::Held> flood;
  while (auto held = bytes.Hold(10, "flood")) flood.push_back(*std::move(held));
  EXPECT_EQ(bytes.held(), 140);
  auto good = bytes.Hold(20, "good");
  EXPECT_TRUE(good.has_value());
  EXPECT_FALSE(bytes.Hold(1, "another").has_value());
  // Each of two may have as much as the other, when there is room again.
  flood.erase(flood.begin() + 7, flood.end());
  EXPECT_FALSE(bytes.Hold(61, "good").has_value());
  EXPECT_TRUE(bytes.Hold(50, "good").has_value());
  flood.clear();
  good.reset();
  EXPECT_EQ(bytes.held(), 0);
  EXPECT_TRUE(bytes.Hold(160, "flood").has_value());
}

TEST(RequestMemoryTest, IsAnEighthWithinBoundsAndFitsItsLargestMessage) {
  EXPECT_EQ(RequestMemory::Of(int64_t{1} << 20).total_bytes, 4 << 20);
  EXPECT_EQ(RequestMemory::Of(int64_t{400} << 20).total_bytes, 50 << 20);
  EXPECT_EQ(RequestMemory::Of(int64_t{1} << 40).total_bytes, 256 << 20);
  for (int64_t cap = 1 << 20; cap < int64_t{1} << 40; cap *= 3) {
    const RequestMemory memory = RequestMemory::Of(cap);
    EXPECT_LE(memory.arriving_bytes() + memory.arrived_bytes(),
              memory.total_bytes);
    EXPECT_LE(2 * memory.max_message_bytes(), memory.arrived_bytes());
    EXPECT_LE(memory.max_message_bytes(), RequestMemory::kMaxMessageBytes);
  }
}

}  // namespace
}  // namespace xcache
