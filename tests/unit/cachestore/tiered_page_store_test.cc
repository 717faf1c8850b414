// The memory pool and the tiers over a disk that can be told to fail or wait.
// Without RocksDB, so that ThreadSanitizer sees everything.
#include "cachestore/tiers/tiered_page_store.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cachestore/tiers/write_behind.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

constexpr size_t kPageBytes = 1000;
constexpr PageTier kShared{"shared"};

class FakeDisk : public PageStore {
 public:
  explicit FakeDisk(MemoryBudget& budget, PageTier tier = PageTier::kDisk)
      : budget_(budget), tier_(tier) {}

  absl::StatusOr<PageHit> Get(const PageKey& key) override {
    std::pair<PageKey, std::string> found;
    {
      MutexLock lock(mu_);
      const auto it = pages_.find(key);
      if (it == pages_.end()) return absl::NotFoundError("no");
      found = it->second;
    }
    auto page = MakePage(budget_, key, found.first, found.second);
    if (!page.ok()) return page.status();
    {
      MutexLock lock(mu_);
      ++stats_.hits;
    }
    return PageHit{*page, tier_};
  }
  absl::Status Put(const PageRef& page) override {
    MutexLock lock(mu_);
    while (waits_) changed_.Wait(mu_);
    if (is_full_) {
      ++stats_.put_failures;
      return absl::ResourceExhaustedError("full");
    }
    const auto [it, is_new] = pages_.try_emplace(page->key(), page->parent(),
                                                 std::string(page->bytes()));
    if (is_new) ++stats_.puts;
    if (it->second.second != page->bytes()) ++stats_.key_conflicts;
    return absl::OkStatus();
  }
  bool Contains(const PageKey& key) const override {
    MutexLock lock(mu_);
    return pages_.contains(key);
  }
  absl::Status Erase(const PageKey& key) override {
    MutexLock lock(mu_);
    pages_.erase(key);
    return absl::OkStatus();
  }
  PageStoreStats stats() const override {
    MutexLock lock(mu_);
    PageStoreStats stats = stats_;
    stats.num_pages = static_cast<int64_t>(pages_.size());
    return stats;
  }
  PageTier tier() const override { return tier_; }

  void SetFull(bool is_full) {
    MutexLock lock(mu_);
    is_full_ = is_full;
  }
  void SetWaits(bool waits) {
    MutexLock lock(mu_);
    waits_ = waits;
    changed_.SignalAll();
  }

 private:
  MemoryBudget& budget_;
  const PageTier tier_;
  mutable Mutex mu_;
  CondVar changed_;
  std::map<PageKey, std::pair<PageKey, std::string>> pages_ XC_GUARDED_BY(mu_);
  bool is_full_ XC_GUARDED_BY(mu_) = false;
  bool waits_ XC_GUARDED_BY(mu_) = false;
  PageStoreStats stats_ XC_GUARDED_BY(mu_);
};

PageRef Make(MemoryBudget& budget, int i) {
  return PageOf(budget, KeyOf(i), i % 10 == 0 ? kRootPageKey : KeyOf(i - 1),
                BytesOf(i, kPageBytes));
}

int64_t Room(int num_pages) { return num_pages * PageMemoryBytes(kPageBytes); }

TEST(MemoryPageStoreTest, EvictsLeavesFirstTheLeastRecentlyUsedFirst) {
  MemoryBudget budget(Room(6));
  MemoryPageStore store(budget, 0);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store.Put(Make(budget, i)).ok());
  for (int i = 10; i < 13; ++i) ASSERT_TRUE(store.Put(Make(budget, i)).ok());
  ASSERT_TRUE(store.Get(KeyOf(2)).ok());  // the other chain is the older now
  std::vector<int> order;
  for (int i = 0; i < 6; ++i) {
    auto room = budget.Reserve(MemoryAccount::kSequences, 1 + Room(i));
    ASSERT_TRUE(room.has_value());
    for (int j : {0, 1, 2, 10, 11, 12}) {
      const bool seen = std::find(order.begin(), order.end(), j) != order.end();
      if (!seen && !store.Contains(KeyOf(j))) order.push_back(j);
    }
  }
  EXPECT_EQ(order, (std::vector<int>{12, 11, 10, 2, 1, 0}));
  EXPECT_EQ(store.stats().evictions, 6);
  EXPECT_EQ(store.stats().evicted_bytes, 6 * int64_t{kPageBytes});
}

TEST(MemoryPageStoreTest, PageInUseIsNeitherEvictedNorItsParent) {
  MemoryBudget budget(Room(3));
  MemoryPageStore store(budget, 0);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store.Put(Make(budget, i)).ok());
  {
    const auto held = store.Get(KeyOf(1));
    ASSERT_TRUE(held.ok());
    EXPECT_FALSE(
        budget.Reserve(MemoryAccount::kSequences, Room(2)).has_value());
    EXPECT_TRUE(store.Contains(KeyOf(0)));
    EXPECT_TRUE(store.Contains(KeyOf(1)));
    EXPECT_FALSE(store.Contains(KeyOf(2)));
  }
  EXPECT_TRUE(budget.Reserve(MemoryAccount::kSequences, Room(3)).has_value());
  EXPECT_EQ(store.stats().num_pages, 0);
}

TEST(MemoryPageStoreTest, PageThatDoesNotFitIsRefused) {
  MemoryBudget budget(Room(2));
  MemoryPageStore store(budget, 0);
  auto held = budget.Reserve(MemoryAccount::kSequences, Room(1) + 1);
  EXPECT_THAT(
      MakePage(budget, KeyOf(0), kRootPageKey, BytesOf(0, kPageBytes)).status(),
      HasCode(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(budget.used_bytes(MemoryAccount::kHostPages), 0);
}

TEST(WriteBehindTest, APageIsLetGoBeforeAnybodyHearsOfItsEnd) {
  MemoryBudget budget(Room(2));
  FakeDisk disk(budget);
  disk.SetFull(true);
  disk.SetWaits(true);
  std::promise<int64_t> held;
  WriteBehind queue(disk,
                    {.queue_bytes = 1 << 20, .dropped = [&](const PageKey&) {
                       held.set_value(budget.used_bytes());
                     }});
  queue.Put(Make(budget, 0));
  EXPECT_GT(budget.used_bytes(), 0);
  disk.SetWaits(false);
  EXPECT_EQ(held.get_future().get(), 0);
}

class TieredPageStoreTest : public ::testing::Test {
 protected:
  void Start(int num_pages, int queue_pages) {
    budget_ = std::make_unique<MemoryBudget>(Room(num_pages));
    disk_ = std::make_unique<FakeDisk>(*budget_);
    shared_ = std::make_unique<FakeDisk>(*budget_, kShared);
    store_ = std::make_unique<TieredPageStore>(
        *budget_, 0, std::vector<PageStore*>{disk_.get(), shared_.get()},
        queue_pages * static_cast<int64_t>(kPageBytes));
  }
  PageStoreStats StatsOf(PageTier tier) const {
    for (const TierStats& stats : store_->tier_stats()) {
      if (stats.tier == tier) return stats.pages;
    }
    return {};
  }
  PageRef Page(int i) { return Make(*budget_, i); }

  std::unique_ptr<MemoryBudget> budget_;
  std::unique_ptr<FakeDisk> disk_;
  std::unique_ptr<FakeDisk> shared_;  // a tier below the disk
  std::unique_ptr<TieredPageStore> store_;
};

TEST_F(TieredPageStoreTest, WritesBehindAndWaitsWhenAskedTo) {
  Start(100, 100);
  disk_->SetWaits(true);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store_->Put(Page(i)).ok());
  EXPECT_EQ(disk_->stats().num_pages, 0);
  EXPECT_GE(StatsOf(PageTier::kDisk).queued_pages, 9);
  EXPECT_GT(StatsOf(PageTier::kDisk).queued_bytes, 0);
  EXPECT_TRUE(store_->Get(KeyOf(9)).ok());
  std::atomic<bool> done{false};
  const PageKey wanted[] = {KeyOf(7), KeyOf(8)};
  std::thread waiter([&] {
    store_->DropFromHost(wanted);
    done = true;
  });
  EXPECT_FALSE(done);
  disk_->SetWaits(false);
  waiter.join();
  EXPECT_TRUE(disk_->Contains(KeyOf(7)));
  EXPECT_TRUE(disk_->Contains(KeyOf(8)));
  store_->Flush();
  EXPECT_EQ(disk_->stats().num_pages, 10);
  EXPECT_EQ(StatsOf(PageTier::kDisk).puts, 10);
  EXPECT_EQ(StatsOf(PageTier::kDisk).queued_bytes, 0);
}

TEST_F(TieredPageStoreTest, QueueIsBounded) {
  Start(100, 3);
  disk_->SetWaits(true);
  std::thread putter([&] {
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(store_->Put(Page(i)).ok());
      EXPECT_LE(StatsOf(PageTier::kDisk).queued_pages, 3);
    }
  });
  disk_->SetWaits(false);
  putter.join();
  store_->Flush();
  EXPECT_EQ(disk_->stats().num_pages, 20);
}

TEST_F(TieredPageStoreTest, DestructorWritesWhatWaits) {
  Start(100, 100);
  disk_->SetWaits(true);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store_->Put(Page(i)).ok());
  std::thread opener([&] { disk_->SetWaits(false); });
  store_.reset();
  opener.join();
  EXPECT_EQ(disk_->stats().num_pages, 10);
}

TEST_F(TieredPageStoreTest, PageFoundOnDiskMovesUp) {
  Start(100, 100);
  ASSERT_TRUE(disk_->Put(Page(1)).ok());
  EXPECT_TRUE(store_->Contains(KeyOf(1)));
  EXPECT_EQ(store_->Get(KeyOf(1))->tier, PageTier::kDisk);
  EXPECT_EQ(store_->Get(KeyOf(1))->tier, PageTier::kHost);
  EXPECT_EQ(StatsOf(PageTier::kDisk).hits, 1);
  store_->Flush();
  EXPECT_EQ(StatsOf(PageTier::kDisk).puts, 1);  // it came from there
}

// Nothing counts two: each tier below has what was put, and is asked in turn.
TEST_F(TieredPageStoreTest, TiersAreAList) {
  Start(100, 100);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(store_->Put(Page(i)).ok());
  store_->Flush();
  EXPECT_EQ(disk_->stats().num_pages, 4);
  EXPECT_EQ(shared_->stats().num_pages, 4);
  ASSERT_TRUE(shared_->Put(Page(4)).ok());
  ASSERT_TRUE(disk_->Put(Page(5)).ok());
  std::vector<PageKey> keys;
  for (int i = 0; i < 7; ++i) keys.push_back(KeyOf(i));
  EXPECT_EQ(store_->LongestPrefix(keys), 6);
  EXPECT_EQ(store_->Get(KeyOf(3))->tier, PageTier::kHost);
  EXPECT_EQ(store_->Get(KeyOf(4))->tier, kShared);
  EXPECT_EQ(store_->Get(KeyOf(4))->tier, PageTier::kHost);
  EXPECT_EQ(store_->Get(KeyOf(5))->tier, PageTier::kDisk);
  EXPECT_THAT(store_->Get(KeyOf(6)).status(),
              HasCode(absl::StatusCode::kNotFound));
  EXPECT_EQ(StatsOf(kShared).hits, 1);
  ASSERT_TRUE(store_->Erase(KeyOf(3)).ok());
  EXPECT_FALSE(disk_->Contains(KeyOf(3)) || shared_->Contains(KeyOf(3)));
  std::vector<std::string_view> names;
  for (const TierStats& stats : store_->tier_stats()) {
    names.push_back(stats.tier.name);
  }
  EXPECT_EQ(names, (std::vector<std::string_view>{"host", "disk", "shared"}));
}

TEST_F(TieredPageStoreTest, EvictedPagesAreFoundOnDisk) {
  Start(8, 2);
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(store_->Put(Page(i)).ok());
    store_->Flush();
  }
  EXPECT_GT(StatsOf(PageTier::kHost).evictions, 40);
  for (int i = 0; i < 50; ++i) {
    const auto hit = store_->Get(KeyOf(i));
    ASSERT_TRUE(hit.ok()) << i << hit.status();
    EXPECT_EQ(hit->page->bytes(), BytesOf(i, kPageBytes));
  }
}

TEST_F(TieredPageStoreTest, RefusedPageIsOfferedAgainWhenMemoryEvictsIt) {
  Start(5, 5);
  disk_->SetFull(true);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(store_->Put(Page(i)).ok());
  store_->Flush();
  EXPECT_EQ(StatsOf(PageTier::kDisk).put_failures, 5);
  EXPECT_TRUE(store_->Get(KeyOf(4)).ok()) << "it is still in memory";
  disk_->SetFull(false);
  {
    auto room = budget_->Reserve(MemoryAccount::kSequences, Room(2));
    ASSERT_TRUE(room.has_value());
  }
  EXPECT_EQ(disk_->stats().num_pages, 2);
  EXPECT_TRUE(disk_->Contains(KeyOf(4)));
  EXPECT_EQ(store_->Get(KeyOf(4))->tier, PageTier::kDisk);
}

// Little memory, a slow and sometimes full disk, many threads: what is found is
// right, the cap holds, and no one waits for ever.
TEST_F(TieredPageStoreTest, StressWithEvictionsAndFailures) {
  Start(20, 4);
  std::atomic<int> wrong{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int step = 0; step < 1500; ++step) {
        const int i = static_cast<int>(random() % 60);
        switch (random() % 8) {
          case 0:
          case 1:
          case 2: {
            auto page = MakePage(*budget_, KeyOf(i),
                                 i % 10 == 0 ? kRootPageKey : KeyOf(i - 1),
                                 BytesOf(i, kPageBytes));
            if (page.ok() && !store_->Put(*page).ok()) ++wrong;
            break;
          }
          case 3: {
            const PageKey keys[] = {KeyOf(i), KeyOf(i + 1)};
            store_->DropFromHost(keys);
            break;
          }
          case 4:
            store_->Erase(KeyOf(i)).IgnoreError();
            break;
          case 5:
            (void)budget_->Reserve(MemoryAccount::kSequences, Room(3));
            break;
          default: {
            const auto hit = store_->Get(KeyOf(i));
            if (hit.ok() && hit->page->bytes() != BytesOf(i, kPageBytes)) {
              ++wrong;
            }
          }
        }
      }
    });
  }
  std::thread weather([&] {
    for (int i = 0; !stop; ++i) {
      disk_->SetFull(i % 3 == 0);
      std::this_thread::yield();
    }
    disk_->SetFull(false);
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  weather.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(budget_->peak_bytes(), Room(20));
  EXPECT_EQ(disk_->stats().key_conflicts, 0);
  EXPECT_EQ(store_->stats().key_conflicts, 0);
  store_.reset();
  EXPECT_EQ(budget_->used_bytes(), 0);
}

}  // namespace
}  // namespace xcache
