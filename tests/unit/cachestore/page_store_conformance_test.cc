// One suite for every page store.
#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/shared/shared_page_store.h"
#include "cachestore/tiers/memory_page_store.h"
#include "cachestore/tiers/tiered_page_store.h"
#include "tests/support/memory_object_store.h"
#include "tests/unit/cachestore/store_fixture.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

constexpr int64_t kMemory = 64 << 20;
constexpr size_t kPageBytes = 20'000;

// A store with all that it stands on.
class Fixture {
 public:
  virtual ~Fixture() = default;
  virtual PageStore& store() = 0;
  MemoryBudget& budget() { return budget_; }

 protected:
  MemoryBudget budget_{kMemory};
};

class MemoryFixture : public Fixture {
 public:
  PageStore& store() override { return store_; }

 private:
  MemoryPageStore store_{budget_, 0};
};

class DiskFixture : public Fixture {
 public:
  DiskFixture()
      : db_(DatabaseKind::kPages, dir_.path() + "/store", int64_t{1} << 30),
        store_(*DiskPageStore::Open(*db_, budget_, nullptr)) {}
  PageStore& store() override { return *store_; }

 protected:
  TempDir dir_;
  LoneDatabase db_;
  std::unique_ptr<DiskPageStore> store_;
};

class TieredFixture : public DiskFixture {
 public:
  TieredFixture()
      : tiered_(std::make_unique<TieredPageStore>(
            budget_, 0, std::vector<PageStore*>{store_.get()}, 1 << 20)) {}
  PageStore& store() override { return *tiered_; }

 private:
  std::unique_ptr<TieredPageStore> tiered_;
};

class SharedFixture : public Fixture {
 public:
  PageStore& store() override { return *store_; }

 private:
  std::unique_ptr<SharedPageStore> store_ = *SharedPageStore::Open(
      std::make_shared<MemoryObjectStore>(std::make_shared<MemoryBucket>()),
      budget_, {});
};

struct Kind {
  std::string name;
  std::function<std::unique_ptr<Fixture>()> make;
};

class PageStoreTest : public ::testing::TestWithParam<Kind> {
 protected:
  PageStoreTest() : fixture_(GetParam().make()) {}
  PageStore& store() { return fixture_->store(); }
  PageRef Make(int i, size_t num_bytes = kPageBytes) {
    return PageOf(fixture_->budget(), KeyOf(i),
                  i == 0 ? kRootPageKey : KeyOf(i - 1), BytesOf(i, num_bytes));
  }

  std::unique_ptr<Fixture> fixture_;
};

TEST_P(PageStoreTest, GivesBackWhatWasPut) {
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(store().Put(Make(i)).ok());
  }
  for (int i = 19; i >= 0; --i) {
    EXPECT_TRUE(store().Contains(KeyOf(i)));
    const auto hit = store().Get(KeyOf(i));
    ASSERT_TRUE(hit.ok()) << hit.status();
    EXPECT_EQ(hit->page->bytes(), BytesOf(i, kPageBytes));
    EXPECT_EQ(hit->page->key(), KeyOf(i));
    EXPECT_EQ(hit->page->parent(), i == 0 ? kRootPageKey : KeyOf(i - 1));
  }
  const PageStoreStats stats = store().stats();
  EXPECT_EQ(stats.num_pages, 20);
  EXPECT_EQ(stats.page_bytes, 20 * static_cast<int64_t>(kPageBytes));
  EXPECT_EQ(stats.hits, 20);
  EXPECT_EQ(stats.misses, 0);
  EXPECT_EQ(stats.puts, 20);
  EXPECT_EQ(stats.get_bytes, 20 * static_cast<int64_t>(kPageBytes));
}

TEST_P(PageStoreTest, UnknownKeyIsNotFoundAndAMiss) {
  EXPECT_FALSE(store().Contains(KeyOf(1)));
  EXPECT_THAT(store().Get(KeyOf(1)).status(),
              HasCode(absl::StatusCode::kNotFound));
  EXPECT_EQ(store().stats().misses, 1);
  EXPECT_EQ(store().stats().corrupt, 0);
}

TEST_P(PageStoreTest, LongestPrefixEndsAtTheFirstPageThatIsMissing) {
  std::vector<PageKey> keys;
  for (int i = 0; i < 5; ++i) keys.push_back(KeyOf(i));
  EXPECT_EQ(store().LongestPrefix(keys), 0);
  for (int i : {0, 1, 2, 4}) ASSERT_TRUE(store().Put(Make(i)).ok());
  EXPECT_EQ(store().LongestPrefix(keys), 3);
  ASSERT_TRUE(store().Put(Make(3)).ok());
  EXPECT_EQ(store().LongestPrefix(keys), 5);
  EXPECT_EQ(store().LongestPrefix({}), 0);
}

TEST_P(PageStoreTest, EmptyAndSmallAndLargePages) {
  const size_t sizes[] = {0, 1, 47, 48, 49, 1023, 1024, 1025, 3'000'000};
  int i = 0;
  for (size_t size : sizes) {
    ASSERT_TRUE(store().Put(Make(i++, size)).ok()) << size;
  }
  i = 0;
  for (size_t size : sizes) {
    const auto hit = store().Get(KeyOf(i));
    ASSERT_TRUE(hit.ok()) << size << hit.status();
    EXPECT_EQ(hit->page->bytes(), BytesOf(i, size));
    ++i;
  }
}

TEST_P(PageStoreTest, PutTwiceStoresOnce) {
  ASSERT_TRUE(store().Put(Make(0)).ok());
  ASSERT_TRUE(store().Put(Make(0)).ok());
  EXPECT_EQ(store().stats().num_pages, 1);
  EXPECT_EQ(store().stats().puts, 1);
  EXPECT_EQ(store().stats().key_conflicts, 0);
}

TEST_P(PageStoreTest, EqualKeyWithOtherBytesIsCountedAndTheFirstStays) {
  ASSERT_TRUE(store().Put(Make(0)).ok());
  const PageRef other = PageOf(fixture_->budget(), KeyOf(0), kRootPageKey,
                               BytesOf(99, kPageBytes));
  ASSERT_TRUE(store().Put(other).ok());
  EXPECT_EQ(store().stats().key_conflicts, 1);
  const auto hit = store().Get(KeyOf(0));
  ASSERT_TRUE(hit.ok());
  EXPECT_EQ(hit->page->bytes(), BytesOf(0, kPageBytes));
}

TEST_P(PageStoreTest, ErasedPageIsGoneAndCanBePutAgain) {
  ASSERT_TRUE(store().Put(Make(0)).ok());
  const auto held = store().Get(KeyOf(0));
  ASSERT_TRUE(held.ok());
  EXPECT_TRUE(store().Erase(KeyOf(0)).ok());
  EXPECT_TRUE(store().Erase(KeyOf(0)).ok());
  EXPECT_FALSE(store().Contains(KeyOf(0)));
  EXPECT_THAT(store().Get(KeyOf(0)).status(),
              HasCode(absl::StatusCode::kNotFound));
  // Whoever holds it still has it.
  EXPECT_EQ(held->page->bytes(), BytesOf(0, kPageBytes));
  ASSERT_TRUE(store().Put(Make(0)).ok());
  EXPECT_TRUE(store().Get(KeyOf(0)).ok());
}

TEST_P(PageStoreTest, PagesThatAreReadAreCountedInTheBudget) {
  ASSERT_TRUE(store().Put(Make(0)).ok());
  const auto hit = store().Get(KeyOf(0));
  ASSERT_TRUE(hit.ok());
  EXPECT_GE(fixture_->budget().used_bytes(MemoryAccount::kHostPages),
            static_cast<int64_t>(kPageBytes));
}

TEST_P(PageStoreTest, ManyThreadsPutGetAndErase) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int step = 0; step < 400; ++step) {
        const int i = static_cast<int>(random() % 16);
        switch (random() % 8) {
          case 0:
            if (!store().Erase(KeyOf(i)).ok()) ++wrong;
            break;
          case 1:
          case 2:
            if (!store().Put(Make(i, 2000)).ok()) ++wrong;
            break;
          default: {
            const auto hit = store().Get(KeyOf(i));
            if (hit.ok() && hit->page->bytes() != BytesOf(i, 2000)) ++wrong;
            if (!hit.ok() && !absl::IsNotFound(hit.status())) ++wrong;
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(store().stats().corrupt, 0);
  EXPECT_EQ(store().stats().key_conflicts, 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, PageStoreTest,
    ::testing::Values(
        Kind{"Memory", [] { return std::make_unique<MemoryFixture>(); }},
        Kind{"Disk", [] { return std::make_unique<DiskFixture>(); }},
        Kind{"Shared", [] { return std::make_unique<SharedFixture>(); }},
        Kind{"Tiered", [] { return std::make_unique<TieredFixture>(); }}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace xcache
