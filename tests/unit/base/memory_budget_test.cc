#include "engine/base/memory_budget.h"

#include <atomic>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

constexpr auto kPages = MemoryAccount::kHostPages;
constexpr auto kSets = MemoryAccount::kWorkingSets;

TEST(MemoryBudgetTest, ReservesUpToTheCapAndNotAByteMore) {
  MemoryBudget budget(100);
  auto a = budget.Reserve(kPages, 60);
  ASSERT_TRUE(a.has_value());
  EXPECT_FALSE(budget.Reserve(kSets, 41).has_value());
  auto b = budget.Reserve(kSets, 40);
  ASSERT_TRUE(b.has_value());
  EXPECT_EQ(budget.used_bytes(), 100);
  EXPECT_EQ(budget.used_bytes(kPages), 60);
  EXPECT_EQ(budget.used_bytes(kSets), 40);
  EXPECT_FALSE(budget.Reserve(kSets, 1).has_value());
  EXPECT_TRUE(budget.Reserve(kSets, 0).has_value());
  EXPECT_EQ(budget.num_refused(), 2);
  a.reset();
  EXPECT_EQ(budget.used_bytes(), 40);
  EXPECT_EQ(budget.used_bytes(kPages), 0);
  EXPECT_EQ(budget.peak_bytes(), 100);
}

TEST(MemoryBudgetTest, HugeAmountsDoNotOverflow) {
  MemoryBudget budget(100);
  auto a = budget.Reserve(kPages, 50);
  EXPECT_FALSE(
      budget.Reserve(kPages, std::numeric_limits<int64_t>::max()).has_value());
  EXPECT_EQ(budget.used_bytes(), 50);
}

TEST(MemoryBudgetTest, MovedReservationGivesBackOnce) {
  MemoryBudget budget(100);
  {
    auto a = budget.Reserve(kPages, 30);
    MemoryReservation b = *std::move(a);
    MemoryReservation c;
    c = std::move(b);
    EXPECT_EQ(c.bytes(), 30);
    EXPECT_EQ(budget.used_bytes(), 30);
    auto d = budget.Reserve(kPages, 20);
    c = *std::move(d);  // gives the 30 back
    EXPECT_EQ(budget.used_bytes(), 20);
    c.Release();
    c.Release();
    EXPECT_EQ(budget.used_bytes(), 0);
    EXPECT_FALSE(c.Resize(1));
    EXPECT_TRUE(c.Resize(0));
  }
  EXPECT_EQ(budget.used_bytes(), 0);
}

TEST(MemoryBudgetTest, ResizeAndTransfer) {
  MemoryBudget budget(100);
  auto a = budget.Reserve(kPages, 30);
  EXPECT_TRUE(a->Resize(80));
  EXPECT_FALSE(a->Resize(101));
  EXPECT_EQ(a->bytes(), 80);
  EXPECT_TRUE(a->Resize(10));
  EXPECT_EQ(budget.used_bytes(), 10);
  a->Transfer(kSets);
  EXPECT_EQ(budget.used_bytes(kPages), 0);
  EXPECT_EQ(budget.used_bytes(kSets), 10);
}

TEST(MemoryBudgetTest, ReclaimersAreAskedByPriorityAndOnlyAsFarAsNeeded) {
  MemoryBudget budget(100);
  std::vector<MemoryReservation> sets;
  std::vector<MemoryReservation> pages;
  for (int i = 0; i < 5; ++i) sets.push_back(*budget.Reserve(kSets, 10));
  for (int i = 0; i < 5; ++i) pages.push_back(*budget.Reserve(kPages, 10));
  const auto drop = [](std::vector<MemoryReservation>& from, int64_t wanted) {
    int64_t freed = 0;
    while (freed < wanted && !from.empty()) {
      freed += from.back().bytes();
      from.pop_back();
    }
    return freed;
  };
  auto second = budget.AddReclaimer(
      "pages", 100, [&](int64_t wanted) { return drop(pages, wanted); });
  auto first = budget.AddReclaimer(
      "sets", 0, [&](int64_t wanted) { return drop(sets, wanted); });
  auto a = budget.Reserve(MemoryAccount::kSequences, 15);
  ASSERT_TRUE(a.has_value());
  EXPECT_EQ(sets.size(), 3u);
  EXPECT_EQ(pages.size(), 5u);
  auto b = budget.Reserve(MemoryAccount::kSequences, 40);
  ASSERT_TRUE(b.has_value());
  EXPECT_EQ(sets.size(), 0u);
  EXPECT_EQ(pages.size(), 4u);
  EXPECT_FALSE(budget.TryReserve(MemoryAccount::kSequences, 10).has_value());
  // What could never fit empties no cache.
  EXPECT_FALSE(budget.Reserve(MemoryAccount::kSequences, 101).has_value());
  EXPECT_EQ(pages.size(), 4u);
}

TEST(MemoryBudgetTest, ReclaimerMayUseTheBudgetAndGoesWhenItsRegistrationDoes) {
  MemoryBudget budget(10);
  auto held = budget.Reserve(kPages, 10);
  int calls = 0;
  auto registration = budget.AddReclaimer("r", 0, [&](int64_t wanted) {
    ++calls;
    EXPECT_EQ(budget.used_bytes(), 10);  // would deadlock under its lock
    EXPECT_EQ(wanted, 4);
    held->Resize(6);
    return 4;
  });
  EXPECT_TRUE(budget.Reserve(kSets, 4).has_value());
  EXPECT_EQ(calls, 1);
  registration.Reset();
  held->Resize(10);
  EXPECT_FALSE(budget.Reserve(kSets, 4).has_value());
  EXPECT_EQ(calls, 1);
}

TEST(MemoryBudgetTest, NamesAreUnique) {
  std::set<std::string> names;
  for (int i = 0; i < kNumMemoryAccounts; ++i) {
    names.insert(std::string(MemoryAccountName(static_cast<MemoryAccount>(i))));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kNumMemoryAccounts));
  EXPECT_FALSE(names.contains("unknown"));
}

// Threads reserve, and take from each other; the cap holds at every instant.
TEST(MemoryBudgetTest, ManyThreadsStayBelowTheCap) {
  MemoryBudget budget(1000);
  Mutex mu;
  std::vector<MemoryReservation> cache;
  auto registration = budget.AddReclaimer("cache", 0, [&](int64_t wanted) {
    std::vector<MemoryReservation> dropped;
    int64_t freed = 0;
    MutexLock lock(mu);
    while (freed < wanted && !cache.empty()) {
      freed += cache.back().bytes();
      dropped.push_back(std::move(cache.back()));
      cache.pop_back();
    }
    return freed;
  });
  std::atomic<int64_t> held{0};
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 2000; ++i) {
        const int64_t bytes = static_cast<int64_t>(random() % 300);
        auto reservation = budget.Reserve(kSets, bytes);
        if (!reservation) continue;
        if (held.fetch_add(bytes) + bytes > 1000) over = true;
        held.fetch_sub(bytes);
        if (random() % 2 == 0) {
          reservation->Transfer(kPages);
          MutexLock lock(mu);
          cache.push_back(*std::move(reservation));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(over);
  EXPECT_LE(budget.peak_bytes(), 1000);
  registration.Reset();
  cache.clear();
  EXPECT_EQ(budget.used_bytes(), 0);
}

}  // namespace
}  // namespace xcache
