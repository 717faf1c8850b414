#include "engine/xcache/bit_allocation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::Each;
using ::testing::Le;

TEST(SpreadBitsTest, SpendsTheBudgetWhereVarianceIs) {
  std::vector<float> deviations(192);
  for (size_t i = 0; i < 192; ++i) {
    deviations[i] = 100.0f / static_cast<float>(1 + i);
  }
  for (int bits : {2, 3, 4}) {
    const std::vector<int> widths = SpreadBits(deviations, bits);
    ASSERT_EQ(widths.size(), 192u);
    EXPECT_EQ(std::accumulate(widths.begin(), widths.end(), 0), 192 * bits);
    EXPECT_TRUE(std::is_sorted(widths.rbegin(), widths.rend()));
    EXPECT_GT(widths.front(), bits + 1);
    EXPECT_LT(widths.back(), bits);
    EXPECT_GE(widths.back(), 1);
    EXPECT_THAT(widths, Each(Le(8)));
  }
}

TEST(SpreadBitsTest, EqualVariancesGetEqualBits) {
  const std::vector<float> deviations(64, 2.5f);
  EXPECT_EQ(SpreadBits(deviations, 3), std::vector<int>(64, 3));
  EXPECT_EQ(SpreadBits(std::vector<float>(64, 0.0f), 2),
            std::vector<int>(64, 2));
}

TEST(SpreadBitsTest, EightBitsStayEight) {
  EXPECT_EQ(SpreadBits(std::vector<float>{9, 8, 7, 1}, 8),
            std::vector<int>(4, 8));
}

TEST(SpreadBitsTest, NeverOverspends) {
  for (size_t n = 1; n < 70; ++n) {
    std::vector<float> deviations(n);
    for (size_t i = 0; i < n; ++i) deviations[i] = std::exp2(-0.2f * float(i));
    for (int bits : {2, 3, 4, 8}) {
      const std::vector<int> widths = SpreadBits(deviations, bits);
      EXPECT_LE(std::accumulate(widths.begin(), widths.end(), 0),
                static_cast<int>(n) * bits);
    }
  }
}

}  // namespace
}  // namespace xcache
