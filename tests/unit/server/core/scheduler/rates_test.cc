// Restore or recompute (rule R6), decided by measured rates.
#include "server/core/scheduler/rates.h"

#include <gtest/gtest.h>

namespace xcache {
namespace {

TEST(RatesTest, RestoresWhileNothingIsKnown) {
  Rates rates;
  EXPECT_TRUE(rates.PreferRestore(1));
  rates.AddPrefill(64, 1e-9);
  EXPECT_TRUE(rates.PreferRestore(1));
}

TEST(RatesTest, TakesTheCheaperWay) {
  Rates rates;
  rates.AddPrefill(64, 0.064);  // a block: 64 ms
  rates.AddRemat(1, 0.010);
  rates.AddLoad(1, 0.020);
  EXPECT_TRUE(rates.PreferRestore(1));
  EXPECT_TRUE(rates.PreferRestore(100));
  // A disk that has become slow.
  for (int i = 0; i < 100; ++i) rates.AddLoad(1, 0.100);
  EXPECT_FALSE(rates.PreferRestore(1));
  EXPECT_FALSE(rates.PreferRestore(100));
}

TEST(RatesTest, TriesTheDearerWayNowAndThen) {
  Rates rates;
  rates.AddPrefill(64, 0.001);
  rates.AddRemat(1, 0.010);
  int num_restores = 0;
  for (int i = 0; i < 320; ++i) num_restores += rates.PreferRestore(1) ? 1 : 0;
  EXPECT_EQ(num_restores, 10);
}

TEST(RatesTest, AveragesFollow) {
  Rates rates;
  rates.AddPrefill(10, 1.0);
  EXPECT_DOUBLE_EQ(rates.values().prefill_token, 0.1);
  rates.AddPrefill(0, 1.0);
  EXPECT_DOUBLE_EQ(rates.values().prefill_token, 0.1);
  for (int i = 0; i < 100; ++i) rates.AddPrefill(10, 2.0);
  EXPECT_NEAR(rates.values().prefill_token, 0.2, 1e-4);
}

}  // namespace
}  // namespace xcache
