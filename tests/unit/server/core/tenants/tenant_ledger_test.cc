#include "server/core/tenants/tenant_ledger.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace xcache {
namespace {

TenantPolicy With(TenantLimit limit, int64_t most) {
  TenantPolicy policy;
  policy.limits[static_cast<size_t>(limit)] = most;
  return policy;
}

class TenantLedgerTest : public ::testing::Test {
 protected:
  int64_t now_ms_ = 1'000'000;
  TenantLedger ledger_{[this] { return now_ms_; }};
};

TEST_F(TenantLedgerTest, EachLimitHoldsAndNamesItself) {
  for (const TenantLimitDef& def : TenantLimitTable()) {
    const std::string name(def.name);
    ledger_.SetPolicies({{"a", With(def.id, 10)}, {"b", {}}});
    auto six = ledger_.Take("a", def.id, 6);
    ASSERT_TRUE(six.ok()) << name;
    const auto five = ledger_.Take("a", def.id, 5);
    EXPECT_TRUE(absl::IsResourceExhausted(five.status())) << name;
    EXPECT_EQ(ReasonOf(five.status()).id, def.reason) << name;
    EXPECT_EQ(five.status().message(), "tenant 'a' may have " + name +
                                           "=10; it has 6 and asks for 5 more");
    EXPECT_TRUE(ledger_.Take("a", def.id, 4).ok()) << name;
    // Nobody else's, and no other limit.
    EXPECT_TRUE(ledger_.Take("b", def.id, 1'000'000).ok()) << name;
    EXPECT_TRUE(ledger_.Take("nobody", def.id, 1'000'000).ok()) << name;
    for (const TenantLimitDef& other : TenantLimitTable()) {
      if (other.id == def.id) continue;
      EXPECT_TRUE(ledger_.Take("a", other.id, 1'000'000).ok()) << name;
    }
    *six = TenantHold();
    EXPECT_TRUE(ledger_.Take("a", def.id, 10).ok()) << name;
  }
}

TEST_F(TenantLedgerTest, WhatIsStoredCountsBesideWhatIsHeld) {
  ledger_.SetPolicies({{"a", With(TenantLimit::kSessions, 3)}});
  const auto making = ledger_.Take("a", TenantLimit::kSessions, 1, 1);
  EXPECT_TRUE(making.ok());
  EXPECT_TRUE(ledger_.Take("a", TenantLimit::kSessions, 1, 1).ok());
  EXPECT_FALSE(ledger_.Take("a", TenantLimit::kSessions, 1, 2).ok());
  // Of a lower limit than there is: nothing more, and what takes nothing goes.
  EXPECT_FALSE(ledger_.Take("a", TenantLimit::kSessions, 1, 100).ok());
  EXPECT_TRUE(ledger_.Take("a", TenantLimit::kSessions, 0, 100).ok());
}

TEST_F(TenantLedgerTest, AHintIsThereWhereTimeHelps) {
  const auto hint = [&](TenantLimit limit, int64_t amount) {
    ledger_.SetPolicies({{"a", With(limit, 10)}});
    const auto held = ledger_.Take("a", limit, 8);
    return RetryAfterOf(ledger_.Take("a", limit, amount).status());
  };
  EXPECT_EQ(hint(TenantLimit::kRequests, 3),
            std::nullopt);  // as the queue says
  EXPECT_EQ(hint(TenantLimit::kQueuedTokens, 3), std::nullopt);
  EXPECT_EQ(hint(TenantLimit::kQueuedTokens, 11), 0);  // never fits
  EXPECT_EQ(hint(TenantLimit::kTokensPerMinute, 3), 1000);
  EXPECT_EQ(hint(TenantLimit::kTokensPerMinute, 11), 0);
  EXPECT_EQ(hint(TenantLimit::kSessions, 3), 0);
  EXPECT_EQ(hint(TenantLimit::kPageBytes, 3), 0);
}

TEST_F(TenantLedgerTest, TokensCountForAMinuteFromTheirUse) {
  constexpr TenantLimit kLimit = TenantLimit::kTokensPerMinute;
  ledger_.SetPolicies({{"a", With(kLimit, 100)}});
  {
    auto hold = ledger_.Take("a", kLimit, 100).value();
    hold.Spend(40);
    now_ms_ += 20'000;
    hold.Spend(30);
    // What it has not used is free again when it ends.
  }
  EXPECT_TRUE(ledger_.Take("a", kLimit, 30).ok());
  const auto refused = ledger_.Take("a", kLimit, 31);
  // The first 40 are a minute old in 40 s, a second more at most.
  const int64_t wait = RetryAfterOf(refused.status()).value_or(0);
  EXPECT_GE(wait, 40'000);
  EXPECT_LE(wait, 41'000);
  now_ms_ += wait - 1;
  EXPECT_FALSE(ledger_.Take("a", kLimit, 31).ok());
  now_ms_ += 1;
  EXPECT_TRUE(ledger_.Take("a", kLimit, 70).ok());
  EXPECT_FALSE(ledger_.Take("a", kLimit, 71).ok());
  now_ms_ += 20'000;
  EXPECT_TRUE(ledger_.Take("a", kLimit, 100).ok());
}

// Who asks as often as it may never gets more in any minute, and gets it all.
TEST_F(TenantLedgerTest, AFloodGetsAMinutesTokensAMinute) {
  constexpr TenantLimit kLimit = TenantLimit::kTokensPerMinute;
  constexpr int64_t kMost = 6000;
  ledger_.SetPolicies({{"a", With(kLimit, kMost)}});
  std::vector<std::pair<int64_t, int64_t>> used;  // when, how many
  struct Running {
    TenantHold hold;
    int64_t left = 120;
  };
  std::vector<Running> running;
  uint32_t seed = 1;
  int64_t total = 0;
  const int64_t start = now_ms_;
  for (; now_ms_ < start + 600'000; now_ms_ += 100) {
    while (true) {
      auto hold = ledger_.Take("a", kLimit, 120);
      if (!hold.ok()) break;
      running.push_back({*std::move(hold)});
    }
    for (Running& one : running) {
      seed = seed * 1664525u + 1013904223u;
      const int64_t n = std::min<int64_t>(one.left, seed >> 29);  // 0 to 7
      one.left -= n;
      one.hold.Spend(n);
      used.emplace_back(now_ms_, n);
      total += n;
    }
    // Some end before they have used all that they could.
    std::erase_if(running, [&](const Running&) {
      seed = seed * 1664525u + 1013904223u;
      return seed >> 27 == 0;
    });
    int64_t minute = 0;
    for (auto it = used.rbegin();
         it != used.rend() && it->first > now_ms_ - 60'000; ++it) {
      minute += it->second;
    }
    ASSERT_LE(minute, kMost);
  }
  EXPECT_GE(total, kMost * 10 * 95 / 100);
}

TEST_F(TenantLedgerTest, NewPoliciesHoldForWhatIsHeldAlready) {
  constexpr TenantLimit kLimit = TenantLimit::kRequests;
  ledger_.SetPolicies({{"a", {}}});
  EXPECT_FALSE(ledger_.has_several());
  const auto first = ledger_.Take("a", kLimit, 1);
  ledger_.SetPolicies({{"a", With(kLimit, 2)}, {"b", {}}});
  EXPECT_TRUE(ledger_.has_several());
  const auto second = ledger_.Take("a", kLimit, 1);
  EXPECT_TRUE(second.ok());
  EXPECT_FALSE(ledger_.Take("a", kLimit, 1).ok());
  // Out of the file, and back.
  ledger_.SetPolicies({{"b", {}}});
  EXPECT_TRUE(ledger_.Take("a", kLimit, 1).ok());
  ledger_.SetPolicies({{"a", With(kLimit, 2)}});
  EXPECT_FALSE(ledger_.Take("a", kLimit, 1).ok());
}

TEST_F(TenantLedgerTest, ChangedLimitsKeepTheCountOfRefusals) {
  constexpr TenantLimit kLimit = TenantLimit::kRequests;
  ledger_.SetPolicies({{"a", With(kLimit, 1)}, {"b", {}}});
  EXPECT_FALSE(ledger_.Take("a", kLimit, 2).ok());
  ledger_.SetPolicies({{"a", With(kLimit, 3)}, {"b", {}}});
  const auto two = ledger_.Take("a", kLimit, 2);
  EXPECT_FALSE(ledger_.Take("a", kLimit, 2).ok());
  const auto uses = ledger_.uses();
  ASSERT_EQ(uses.size(), 1u);  // b has no limit
  EXPECT_EQ(uses[0].tenant, "a");
  EXPECT_EQ(uses[0].limit, kLimit);
  EXPECT_EQ(uses[0].most, 3);
  EXPECT_EQ(uses[0].used, 2);
  EXPECT_EQ(uses[0].refusals, 2u);
}

TEST_F(TenantLedgerTest, WhoIsNotNamedWeighsOne) {
  TenantPolicy heavy;
  heavy.weight = 7;
  ledger_.SetPolicies({{"a", heavy}});
  EXPECT_EQ(ledger_.WeightOf("a"), 7);
  EXPECT_EQ(ledger_.WeightOf("b"), 1);
}

TEST(TenantLedgerThreadsTest, ALimitHoldsWhoeverComesAtOnce) {
  constexpr TenantLimit kLimit = TenantLimit::kRequests;
  TenantLedger ledger;
  ledger.SetPolicies({{"a", With(kLimit, 3)}});
  std::atomic<int> inside{0}, most{0}, refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        auto hold = ledger.Take("a", kLimit, 1);
        if (!hold.ok()) {
          ++refused;
          continue;
        }
        const int now = ++inside;
        for (int seen = most; seen < now;) {
          if (most.compare_exchange_weak(seen, now)) break;
        }
        if (i % 50 == 0) std::this_thread::yield();
        --inside;
      }
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < 200; ++i) {
      ledger.SetPolicies({{"a", With(kLimit, 3)}, {"b", {}}});
      (void)ledger.uses();
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 3);
  EXPECT_EQ(ledger.uses()[0].refusals, static_cast<uint64_t>(refused.load()));
  EXPECT_EQ(ledger.uses()[0].used, 0);
}

}  // namespace
}  // namespace xcache
