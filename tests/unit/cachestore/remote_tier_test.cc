// The list of tiers with one at the other end of a network: who puts a page
// never waits for it, what is there comes by a prefetch, and what it did not
// get it gets later. Without RocksDB, so that ThreadSanitizer sees everything.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cachestore/shared/page_object.h"
#include "cachestore/shared/shared_page_store.h"
#include "cachestore/tiers/tiered_page_store.h"
#include "tests/support/memory_object_store.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using Call = MemoryObjectStore::Call;
using State = PagePrefetch::State;

constexpr size_t kPageBytes = 2000;

std::vector<PageKey> Keys(int begin, int end) {
  std::vector<PageKey> keys;
  for (int i = begin; i < end; ++i) keys.push_back(KeyOf(i));
  return keys;
}

class RemoteTierTest : public ::testing::Test {
 protected:
  RemoteTierTest() { Start({}); }

  void Start(RemoteTierOptions options, int64_t queue_bytes = 1 << 20) {
    tiers_.reset();
    shared_.reset();
    objects_ = std::make_shared<MemoryObjectStore>(bucket_);
    SharedPageOptions shared;
    shared.get_timeout = milliseconds(2000);
    shared.put_timeout = milliseconds(300);
    shared.breaker = {.max_failures = 3,
                      .first_pause = milliseconds(50),
                      .longest_pause = milliseconds(100)};
    shared_ = *SharedPageStore::Open(objects_, budget_, shared);
    options.store = shared_.get();
    tiers_ = std::make_unique<TieredPageStore>(budget_, 0, lower_, queue_bytes,
                                               options);
  }
  PageRef Make(int i) {
    return PageOf(budget_, KeyOf(i), i == 0 ? kRootPageKey : KeyOf(i - 1),
                  BytesOf(i, kPageBytes));
  }
  // As another machine would.
  void PutElsewhere(int begin, int end) {
    for (int i = begin; i < end; ++i) {
      bucket_->Set(PageObjectName(KeyOf(i)),
                   WrapPage({.key = KeyOf(i),
                             .parent = i == 0 ? kRootPageKey : KeyOf(i - 1),
                             .put_unix_ms = 4'000'000'000'000},
                            BytesOf(i, kPageBytes)));
    }
  }
  std::unique_ptr<PagePrefetch> Prefetch(std::vector<PageKey> keys,
                                         size_t num_promised) {
    return tiers_->Prefetch({.keys = std::move(keys),
                             .num_promised = num_promised,
                             .wake = [this] { ++wakes_; }});
  }
  static bool IsOver(const PagePrefetch& prefetch, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      if (prefetch.StateOf(KeyOf(i)) == State::kComing) return false;
    }
    return true;
  }
  int64_t gets() const { return objects_->num_calls(Call::kGet); }
  int64_t puts() const { return objects_->num_calls(Call::kPut); }

  std::atomic<int> wakes_{0};
  std::vector<PageStore*> lower_;  // tiers between host memory and this one
  MemoryBudget budget_{64 << 20};
  std::shared_ptr<MemoryBucket> bucket_ = std::make_shared<MemoryBucket>();
  std::shared_ptr<MemoryObjectStore> objects_;
  std::unique_ptr<SharedPageStore> shared_;
  std::unique_ptr<TieredPageStore> tiers_;
};

TEST_F(RemoteTierTest, PagesAreSentBehindByManyWriters) {
  objects_->set_delay(milliseconds(30));
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(tiers_->Put(Make(i)).ok());
  tiers_->Flush();
  EXPECT_EQ(bucket_->objects().size(), 12u);
  EXPECT_GE(objects_->most_running(), 2);
  EXPECT_LE(objects_->most_running(), 4);
}

TEST_F(RemoteTierTest, NobodyWaitsForAStoreThatHangsAndWhatItMissedComesLater) {
  Start({}, 5 * kPageBytes);
  objects_->Pause();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(tiers_->Put(Make(i)).ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(10000));
  EXPECT_LE(tiers_->tier_stats()[1].pages.queued_bytes, 5 * 2000);
  EXPECT_GT(tiers_->num_owed(), 25);
  // Nor does who asks for it, longer than the patience of a flush.
  tiers_->Flush();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  objects_->Resume();
  EXPECT_TRUE(Eventually([&] {
    tiers_->Housekeep();
    return bucket_->objects().size() == 40;
  }));
  EXPECT_TRUE(Eventually([&] {
    tiers_->Housekeep();
    return tiers_->num_owed() == 0;
  }));
  EXPECT_GT(tiers_->tier_stats()[1].pages.put_failures, 25);
}

// After a restart nothing is known of what is there.
TEST_F(RemoteTierTest, APageThatIsUsedHereStaysThere) {
  MemoryPageStore disk(budget_, 1);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(disk.Put(Make(i)).ok());
  lower_ = {&disk};
  Start({});
  // One is there, one is old, one has gone; and one that nobody uses.
  PutElsewhere(0, 1);
  constexpr int64_t kLongAgo = 1'600'000'000'000;
  bucket_->set_clock([] { return kLongAgo; });
  PutElsewhere(1, 2);
  bucket_->set_clock(nullptr);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(tiers_->Get(KeyOf(i)).ok());
  ASSERT_TRUE(Eventually([&] {
    tiers_->Housekeep();
    return bucket_->objects().size() == 3 && puts() == 2;
  }));
  tiers_->Flush();  // until they who put have heard of it
  EXPECT_GT(bucket_->Find(PageObjectName(KeyOf(1)))->modified_unix_ms,
            kLongAgo);
  EXPECT_EQ(shared_->shared_stats().refreshed, 1);
  EXPECT_TRUE(bucket_->Find(PageObjectName(KeyOf(2))));
  EXPECT_EQ(objects_->num_calls(Call::kList), 3);
  EXPECT_EQ(gets(), 0);
  // It is known now.
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(tiers_->Get(KeyOf(i)).ok());
  tiers_->Housekeep();
  EXPECT_EQ(objects_->num_calls(Call::kList), 3);
  tiers_.reset();
}

TEST_F(RemoteTierTest, EvictionsWriteNothing) {
  Start({}, /*queue_bytes=*/0);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(tiers_->Put(Make(i)).ok());
  const int64_t before = puts();
  { auto all = budget_.Reserve(MemoryAccount::kSequences, 60 << 20); }
  EXPECT_EQ(puts(), before);
}

TEST_F(RemoteTierTest, GetAndContainsAreOfThisMachine) {
  PutElsewhere(0, 1);
  EXPECT_FALSE(tiers_->Contains(KeyOf(0)));
  EXPECT_THAT(tiers_->Get(KeyOf(0)).status(),
              HasCode(absl::StatusCode::kNotFound));
  EXPECT_EQ(gets(), 0);
}

TEST_F(RemoteTierTest, PromisedPagesAreAskedForAllAtOnce) {
  PutElsewhere(0, 40);
  objects_->set_delay(milliseconds(20));
  const auto prefetch = Prefetch(Keys(0, 40), 40);
  ASSERT_NE(prefetch, nullptr);
  EXPECT_EQ(prefetch->StateOf(KeyOf(39)), State::kComing);
  EXPECT_EQ(prefetch->StateOf(KeyOf(40)), State::kNotComing);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 40); }));
  EXPECT_EQ(objects_->most_running(), 16);
  EXPECT_EQ(gets(), 40);
  EXPECT_EQ(wakes_, 40);
  for (int i = 0; i < 40; ++i) {
    EXPECT_TRUE(prefetch->Brought(KeyOf(i)));
    const auto hit = tiers_->Get(KeyOf(i));
    ASSERT_TRUE(hit.ok());
    EXPECT_EQ(hit->tier, PageTier::kHost);
    EXPECT_EQ(hit->page->bytes(), BytesOf(i, kPageBytes));
  }
  EXPECT_EQ(prefetch->timing().num_pages, 40);
  EXPECT_GE(prefetch->timing().first_seconds, 0.020);
  EXPECT_GE(prefetch->timing().last_seconds, 0.060);
  tiers_->Flush();
  EXPECT_EQ(puts(), 0) << "it came from there";
}

TEST_F(RemoteTierTest, UnknownPagesAreAskedForWhileTheyAreFound) {
  objects_->set_delay(milliseconds(20));
  // A prompt that nobody knows costs one question.
  auto prefetch = Prefetch(Keys(100, 140), 0);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 100, 140); }));
  EXPECT_EQ(gets(), 1);
  EXPECT_EQ(wakes_, 1);
  // A system prompt that others have had: 1, 2, 4, 8.
  PutElsewhere(0, 15);
  prefetch = Prefetch(Keys(0, 60), 0);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 60); }));
  for (int i = 0; i < 15; ++i) EXPECT_TRUE(tiers_->Contains(KeyOf(i))) << i;
  EXPECT_LE(gets(), 1 + 15 + 16);
  EXPECT_GE(objects_->most_running(), 8);
}

TEST_F(RemoteTierTest, APromisedPageThatIsMissingStopsOnlyItself) {
  PutElsewhere(0, 5);
  PutElsewhere(6, 20);
  const auto prefetch = Prefetch(Keys(0, 20), 20);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 20); }));
  EXPECT_EQ(prefetch->StateOf(KeyOf(5)), State::kNotComing);
  EXPECT_EQ(prefetch->StateOf(KeyOf(19)), State::kCame);
  // Of a bucket that was emptied a few are asked for, and not all.
  const auto none = Prefetch(Keys(100, 200), 100);
  ASSERT_TRUE(Eventually([&] { return IsOver(*none, 100, 200); }));
  EXPECT_LE(gets(), 20 + 16 + 4);
}

TEST_F(RemoteTierTest, OnePageIsFetchedOnceForMany) {
  PutElsewhere(0, 10);
  objects_->Pause();
  std::vector<std::unique_ptr<PagePrefetch>> many;
  for (int i = 0; i < 20; ++i) many.push_back(Prefetch(Keys(0, 10), 10));
  ASSERT_TRUE(Eventually([&] { return gets() == 10; }));
  objects_->Resume();
  for (const auto& prefetch : many) {
    ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 10); }));
    EXPECT_EQ(prefetch->StateOf(KeyOf(9)), State::kCame);
  }
  EXPECT_EQ(gets(), 10);
}

TEST_F(RemoteTierTest, WhatIsHereIsNotFetched) {
  PutElsewhere(0, 10);
  for (int i = 3; i < 6; ++i) ASSERT_TRUE(tiers_->Put(Make(i)).ok());
  const auto prefetch = Prefetch(Keys(0, 10), 10);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 10); }));
  EXPECT_EQ(gets(), 7);
  EXPECT_EQ(prefetch->StateOf(KeyOf(4)), State::kCame);
  EXPECT_FALSE(prefetch->Brought(KeyOf(4)));
}

TEST_F(RemoteTierTest, WhoEndsAsksForNoMore) {
  PutElsewhere(0, 100);
  objects_->Pause();
  auto prefetch = Prefetch(Keys(0, 100), 100);
  ASSERT_TRUE(Eventually([&] { return gets() == 16; }));
  prefetch.reset();
  objects_->Resume();
  ASSERT_TRUE(Eventually([&] { return objects_->num_running() == 0; }));
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(gets(), 16);
  EXPECT_EQ(wakes_, 0);
}

TEST_F(RemoteTierTest, PagesDoNotComeTooFarAhead) {
  RemoteTierOptions options;
  options.prefetch.ahead_bytes = 30 * kPageBytes;
  options.prefetch.window_bytes = 1
                                  << 20;  // pages may be of 256 KiB: 4 of them
  Start(options);
  PutElsewhere(0, 200);
  const auto prefetch = Prefetch(Keys(0, 200), 200);
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_LE(gets(), 35);
  EXPECT_GE(gets(), 1);
  EXPECT_LE(objects_->most_running(), 4);
  EXPECT_EQ(prefetch->StateOf(KeyOf(199)), State::kComing);
  for (int i = 0; i < 200; ++i) {
    prefetch->Reached(KeyOf(i));
    ASSERT_TRUE(Eventually(
        [&] { return prefetch->StateOf(KeyOf(i)) == State::kCame; }));
  }
}

TEST_F(RemoteTierTest, AStoreThatIsAwayEndsAPrefetchAndStartsNone) {
  PutElsewhere(0, 40);
  objects_->FailAll(absl::UnavailableError("away"));
  const auto prefetch = Prefetch(Keys(0, 40), 40);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 40); }));
  EXPECT_LE(gets(), 16);
  ASSERT_TRUE(Eventually([&] { return !shared_->IsReachable(); }));
  EXPECT_EQ(Prefetch(Keys(0, 40), 40), nullptr);
  objects_->FailAll(absl::OkStatus());
  ASSERT_TRUE(Eventually([&] {
    tiers_->Housekeep();
    return Prefetch(Keys(0, 1), 1) != nullptr;
  }));
}

TEST_F(RemoteTierTest, WithoutMemoryAPageIsNotFetched) {
  PutElsewhere(0, 40);
  auto all = budget_.Reserve(MemoryAccount::kSequences,
                             budget_.cap_bytes() - budget_.used_bytes() - 1000);
  ASSERT_TRUE(all.has_value());
  const auto prefetch = Prefetch(Keys(0, 40), 40);
  ASSERT_TRUE(Eventually([&] { return IsOver(*prefetch, 0, 40); }));
  EXPECT_EQ(gets(), 0);
  EXPECT_EQ(prefetch->StateOf(KeyOf(0)), State::kNotComing);
}

TEST_F(RemoteTierTest, APageThatIsErasedGoesFromThereButNotByASessionsEnd) {
  ASSERT_TRUE(tiers_->Put(Make(0)).ok());
  ASSERT_TRUE(tiers_->Put(Make(1)).ok());
  tiers_->Flush();
  tiers_->EraseHere(KeyOf(0));
  EXPECT_FALSE(tiers_->Contains(KeyOf(0)));
  ASSERT_TRUE(tiers_->Erase(KeyOf(1)).ok());
  EXPECT_TRUE(
      Eventually([&] { return !bucket_->Find(PageObjectName(KeyOf(1))); }));
  EXPECT_TRUE(bucket_->Find(PageObjectName(KeyOf(0))));
}

TEST_F(RemoteTierTest, WithoutADiskOnlyWhatIsElsewhereLeavesMemory) {
  objects_->Pause();
  ASSERT_TRUE(tiers_->Put(Make(0)).ok());
  const PageKey keys[] = {KeyOf(0)};
  EXPECT_EQ(tiers_->DropFromHost(keys), 0);
  objects_->Resume();
  tiers_->Flush();
  EXPECT_TRUE(Eventually([&] {
    tiers_->Housekeep();
    return tiers_->DropFromHost(keys) > 0;
  }));
}

}  // namespace
}  // namespace xcache
