// Pages in a bucket that several machines share.
#include "cachestore/shared/shared_page_store.h"

#include <atomic>

#include "cachestore/shared/page_object.h"
#include "tests/support/memory_object_store.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using Call = MemoryObjectStore::Call;

constexpr size_t kPageBytes = 5000;
constexpr int64_t kDay = 24 * 3600 * 1000;
constexpr int64_t kLife = 7 * kDay;

// One machine's part of the tier.
struct Machine {
  Machine(const std::shared_ptr<MemoryBucket>& bucket,
          const std::atomic<int64_t>& now_ms)
      : objects(std::make_shared<MemoryObjectStore>(bucket)) {
    SharedPageOptions options;
    options.page_life = milliseconds(kLife);
    options.get_timeout = milliseconds(200);
    options.put_timeout = milliseconds(200);
    options.absent_for = milliseconds(300);
    options.breaker = {.max_failures = 3,
                       .first_pause = milliseconds(50),
                       .longest_pause = milliseconds(100)};
    options.sweep_pause = milliseconds(0);
    options.unix_ms = [&now_ms] { return now_ms.load(); };
    pages = *SharedPageStore::Open(objects, budget, options);
  }
  PageRef Make(int i) {
    return PageOf(budget, KeyOf(i), i == 0 ? kRootPageKey : KeyOf(i - 1),
                  BytesOf(i, kPageBytes));
  }
  int64_t calls(Call call) const { return objects->num_calls(call); }

  MemoryBudget budget{64 << 20};
  std::shared_ptr<MemoryObjectStore> objects;
  std::unique_ptr<SharedPageStore> pages;
};

class SharedPageStoreTest : public ::testing::Test {
 protected:
  SharedPageStoreTest() {
    bucket_->set_clock([this] { return now_ms_.load(); });
  }

  std::shared_ptr<MemoryBucket> bucket_ = std::make_shared<MemoryBucket>();
  std::atomic<int64_t> now_ms_{1'764'000'000'000};
  Machine a_{bucket_, now_ms_}, b_{bucket_, now_ms_};
};

TEST_F(SharedPageStoreTest, WhatOneMachinePutsAnotherGets) {
  ASSERT_TRUE(a_.pages->Put(a_.Make(1)).ok());
  EXPECT_FALSE(b_.pages->Contains(KeyOf(1)));
  const auto hit = b_.pages->Get(KeyOf(1));
  ASSERT_TRUE(hit.ok()) << hit.status();
  EXPECT_EQ(hit->tier, PageTier::kShared);
  EXPECT_EQ(hit->page->bytes(), BytesOf(1, kPageBytes));
  EXPECT_EQ(hit->page->parent(), KeyOf(0));
  EXPECT_TRUE(b_.pages->Contains(KeyOf(1)));
  EXPECT_EQ(b_.pages->stats().get_bytes, int64_t{kPageBytes});
}

TEST_F(SharedPageStoreTest, APageIsSentOnceByWhomeverItWasMade) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(a_.pages->Put(a_.Make(1)).ok());
  EXPECT_EQ(a_.calls(Call::kPut), 1);
  ASSERT_TRUE(b_.pages->Put(b_.Make(1)).ok());
  EXPECT_EQ(b_.calls(Call::kPut), 1);
  EXPECT_EQ(b_.pages->stats().puts, 0) << "it was there";
  EXPECT_FALSE(b_.pages->Wants(KeyOf(1)));
  EXPECT_EQ(bucket_->objects().size(), 1u);
}

TEST_F(SharedPageStoreTest, APageThatWasNotThereIsNotAskedForAtOnceAgain) {
  for (int i = 0; i < 5; ++i) {
    EXPECT_THAT(b_.pages->Get(KeyOf(1)).status(),
                HasCode(absl::StatusCode::kNotFound));
  }
  EXPECT_EQ(b_.calls(Call::kGet), 1);
  EXPECT_EQ(b_.pages->stats().misses, 5);
  EXPECT_EQ(b_.pages->shared_stats().negative_hits, 4);
  ASSERT_TRUE(a_.pages->Put(a_.Make(1)).ok());
  EXPECT_TRUE(Eventually([&] { return b_.pages->Get(KeyOf(1)).ok(); }));
  // Who puts a page itself knows at once.
  EXPECT_FALSE(b_.pages->Get(KeyOf(2)).ok());
  ASSERT_TRUE(b_.pages->Put(b_.Make(2)).ok());
  EXPECT_TRUE(b_.pages->Get(KeyOf(2)).ok());
}

TEST_F(SharedPageStoreTest, ADamagedPageIsGivenToNobodyAndHeals) {
  ASSERT_TRUE(a_.pages->Put(a_.Make(1)).ok());
  const std::string name = PageObjectName(KeyOf(1));
  const std::string whole = bucket_->Find(name)->bytes;
  // Truncated, flipped, empty, and another page's object.
  ASSERT_TRUE(a_.pages->Put(a_.Make(2)).ok());
  const std::string other = bucket_->Find(PageObjectName(KeyOf(2)))->bytes;
  std::string flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(flipped[whole.size() / 2] ^ 1);
  int64_t damaged = 0;
  for (const std::string& bytes :
       {whole.substr(0, 100), flipped, std::string(), other}) {
    bucket_->Set(name, bytes);
    EXPECT_THAT(b_.pages->Get(KeyOf(1)).status(),
                HasCode(absl::StatusCode::kDataLoss));
    EXPECT_EQ(b_.pages->stats().corrupt, ++damaged);
    EXPECT_FALSE(b_.pages->Contains(KeyOf(1)));
    ASSERT_TRUE(b_.pages->Wants(KeyOf(1)));
    ASSERT_TRUE(b_.pages->Put(b_.Make(1)).ok());
    EXPECT_EQ(b_.pages->Get(KeyOf(1))->page->bytes(), BytesOf(1, kPageBytes));
  }
  // Where another machine was faster, its object stays.
  bucket_->Set(name, flipped);
  EXPECT_FALSE(b_.pages->Get(KeyOf(1)).ok());
  bucket_->Set(name, whole);
  ASSERT_TRUE(b_.pages->Put(b_.Make(1)).ok());
  EXPECT_EQ(bucket_->Find(name)->bytes, whole);
  // And where it was deleted meanwhile, it is put.
  bucket_->Set(name, flipped);
  EXPECT_FALSE(b_.pages->Get(KeyOf(1)).ok());
  bucket_->Delete(name);
  ASSERT_TRUE(b_.pages->Put(b_.Make(1)).ok());
  EXPECT_TRUE(bucket_->Find(name));
}

TEST_F(SharedPageStoreTest, APageInUseIsPutAgainAtHalfOfItsLife) {
  ASSERT_TRUE(a_.pages->Put(a_.Make(1)).ok());
  now_ms_ += kLife / 2 - 1000;
  const auto early = b_.pages->Get(KeyOf(1));
  ASSERT_TRUE(early.ok());
  EXPECT_FALSE(b_.pages->Wants(KeyOf(1)));
  now_ms_ += 2000;
  ASSERT_TRUE(b_.pages->Wants(KeyOf(1)));
  ASSERT_TRUE(b_.pages->Put(early->page).ok());
  EXPECT_EQ(b_.pages->shared_stats().refreshed, 1);
  EXPECT_FALSE(b_.pages->Wants(KeyOf(1)));
  EXPECT_EQ(bucket_->Find(PageObjectName(KeyOf(1)))->modified_unix_ms, now_ms_);
  // Another machine learns of it by the envelope.
  Machine c(bucket_, now_ms_);
  ASSERT_TRUE(c.pages->Get(KeyOf(1)).ok());
  EXPECT_FALSE(c.pages->Wants(KeyOf(1)));
}

TEST_F(SharedPageStoreTest, AStoreThatIsAwayIsAskedByOneCallNowAndThen) {
  ASSERT_TRUE(a_.pages->Put(a_.Make(1)).ok());
  b_.objects->FailAll(absl::UnavailableError("away"));
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(b_.pages->Get(KeyOf(1)).ok());
  EXPECT_FALSE(b_.pages->IsReachable());
  const int64_t calls = b_.calls(Call::kGet);
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(b_.pages->Get(KeyOf(1)).status(),
                HasCode(absl::StatusCode::kUnavailable));
    EXPECT_THAT(b_.pages->Put(b_.Make(2)),
                HasCode(absl::StatusCode::kUnavailable));
  }
  EXPECT_LE(b_.calls(Call::kGet) + b_.calls(Call::kPut), calls + 3);
  EXPECT_GE(b_.pages->stats().put_failures, 19);
  // Nobody has to ask for a page to find out that it is back.
  b_.objects->FailAll(absl::OkStatus());
  EXPECT_TRUE(Eventually([&] {
    b_.pages->Housekeep();
    return b_.pages->IsReachable();
  }));
  EXPECT_TRUE(b_.pages->Get(KeyOf(1)).ok());
  EXPECT_EQ(b_.pages->shared_stats().breaker_opened, 1);
}

TEST_F(SharedPageStoreTest, AStoreThatHangsHoldsNobodyBeyondTheTimeout) {
  b_.objects->Pause();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(b_.pages->Get(KeyOf(1)).status(),
              HasCode(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(b_.pages->Put(b_.Make(1)),
              HasCode(absl::StatusCode::kDeadlineExceeded));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST_F(SharedPageStoreTest, CallsMayEndAfterItIsGone) {
  std::atomic<bool> ended{false};
  b_.objects->Pause();
  b_.pages->Fetch(KeyOf(1), [&](RemotePageStore::Arrival arrival) {
    EXPECT_FALSE(arrival.status.ok());
    ended = true;
  });
  b_.pages->Sweep(now_ms_);
  b_.pages.reset();
  b_.objects.reset();
  EXPECT_TRUE(ended);
}

// As Eventually, for what takes less than its pause.
bool Soon(const std::function<bool()>& condition) {
  const auto until =
      std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::yield();
  }
  return true;
}

class SharedPageSweepTest : public SharedPageStoreTest {
 protected:
  // Looks through every folder.
  void SweepAll(Machine& machine) {
    for (int i = 0; i < kPageFolders; ++i) {
      const int64_t swept = machine.pages->shared_stats().folders_swept;
      machine.pages->Sweep(now_ms_);
      ASSERT_TRUE(Soon([&] {
        return machine.pages->shared_stats().folders_swept == swept + 1;
      })) << i;
    }
  }
  size_t num_pages() const {
    size_t n = 0;
    for (const auto& [key, object] : bucket_->objects()) {
      n += key.starts_with("pages/") ? 1 : 0;
    }
    return n;
  }
};

TEST_F(SharedPageSweepTest, PagesThatNobodyPutForTheirWholeLifeGo) {
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(a_.pages->Put(a_.Make(i)).ok());
  bucket_->Set("sessions/one", "of somebody else's");
  now_ms_ += kLife / 2 + 1000;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(a_.pages->Put(a_.Make(i)).ok());
  now_ms_ += kLife / 2;
  SweepAll(b_);
  EXPECT_EQ(num_pages(), 10u);
  EXPECT_EQ(b_.pages->shared_stats().pages_swept, 20);
  EXPECT_TRUE(bucket_->Find("sessions/one"));
  // Whoever put them does not say that they are there.
  EXPECT_FALSE(a_.pages->Contains(KeyOf(20)));
  EXPECT_TRUE(a_.pages->Contains(KeyOf(5)));
}

TEST_F(SharedPageSweepTest, NothingIsDeletedWhereTheClocksDiffer) {
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(a_.pages->Put(a_.Make(i)).ok());
  const int64_t then = now_ms_;
  // This machine's clock, then the store's, is far ahead.
  for (const bool is_stores : {false, true}) {
    // What the last look still does, it does by the clocks that it began with.
    std::this_thread::sleep_for(milliseconds(200));
    now_ms_ = is_stores ? then + 2 * kLife : then;
    for (int i = 0; i < kPageFolders; ++i) {
      b_.pages->Sweep(is_stores ? then : then + 2 * kLife);
      ASSERT_TRUE(Soon([&] { return b_.objects->num_running() == 0; }));
    }
  }
  EXPECT_EQ(b_.pages->shared_stats().folders_swept, 0);
  EXPECT_EQ(num_pages(), 300u);
}

}  // namespace
}  // namespace xcache
