// Restore or recompute (rule R6), decided by measured rates.
#include "server/core/scheduler/rates.h"

#include <gtest/gtest.h>

namespace xcache {
namespace {

TEST(RatesTest, RestoresWhileNothingIsKnown) {
  Rates rates;
  EXPECT_TRUE(rates.PreferRestore(0, 1));
  rates.AddPrefill(64, 1e-9);
  EXPECT_TRUE(rates.PreferRestore(0, 1));
}

TEST(RatesTest, TakesTheCheaperWay) {
  Rates rates;
  rates.AddPrefill(64, 0.064);  // a block: 64 ms
  rates.AddRemat(1, 0.010);
  rates.AddLoad(0, 1, 0.020);
  EXPECT_TRUE(rates.PreferRestore(0, 1));
  EXPECT_TRUE(rates.PreferRestore(0, 100));
  // A disk that has become slow.
  for (int i = 0; i < 100; ++i) rates.AddLoad(0, 1, 0.100);
  EXPECT_FALSE(rates.PreferRestore(0, 1));
  EXPECT_FALSE(rates.PreferRestore(0, 100));
}

TEST(RatesTest, EachTierIsMeasuredApart) {
  Rates rates;
  rates.AddPrefill(64, 0.064);
  rates.AddRemat(1, 0.010);
  rates.AddLoad(2, 0, 0.002);
  rates.AddLoad(2, 2, 0.402);  // two of them at a millisecond
  EXPECT_DOUBLE_EQ(rates.values().load_block_host, 0.001);
  EXPECT_DOUBLE_EQ(rates.values().load_block_disk, 0.200);
  EXPECT_TRUE(rates.PreferRestore(10, 0));
  EXPECT_FALSE(rates.PreferRestore(0, 10));
  EXPECT_TRUE(rates.PreferRestore(40, 1));
}

TEST(RatesTest, FetchingCostsItsLatencyOnce) {
  Rates rates;
  EXPECT_TRUE(rates.PreferFetch(1));
  rates.AddPrefill(64, 0.064);
  rates.AddRemat(1, 0.004);
  rates.AddFetch(0, 7.0, 8.0);  // nothing came: nothing is learnt
  EXPECT_EQ(rates.values().fetch_first, 0);
  rates.AddFetch(11, 0.500, 0.600);
  EXPECT_DOUBLE_EQ(rates.values().fetch_first, 0.500);
  EXPECT_DOUBLE_EQ(rates.values().fetch_block, 0.010);
  EXPECT_FALSE(rates.PreferFetch(1));
  EXPECT_FALSE(rates.PreferFetch(9));
  EXPECT_TRUE(rates.PreferFetch(11));
  // Now and then against the averages, which else stay as they are.
  int num_fetches = 0;
  for (int i = 0; i < 320; ++i) num_fetches += rates.PreferFetch(1) ? 1 : 0;
  EXPECT_EQ(num_fetches, 10);
}

TEST(RatesTest, TriesTheDearerWayNowAndThen) {
  Rates rates;
  rates.AddPrefill(64, 0.001);
  rates.AddRemat(1, 0.010);
  int num_restores = 0;
  for (int i = 0; i < 320; ++i)
    num_restores += rates.PreferRestore(0, 1) ? 1 : 0;
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
