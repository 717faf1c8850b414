// Pages of the shared tier in a real S3 server.
#include <atomic>
#include <thread>
#include <vector>

#include "cachestore/shared/page_object.h"
#include "cachestore/shared/page_sweep.h"
#include "cachestore/shared/shared_page_store.h"
#include "cachestore/tiers/tiered_page_store.h"
#include "gmock/gmock.h"
#include "tests/integration/s3_server_fixture.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A block of a model of 1.5B parameters, 4 bits.
constexpr size_t kPageBytes = 458'752;

PageKey KeyOf(uint64_t i) { return Sha256Of(absl::StrCat("page ", i)); }

bool Eventually(const std::function<bool()>& condition) {
  const auto until = steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (steady_clock::now() > until) return false;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return true;
}

// One machine of a fleet.
struct Machine {
  Machine(int port, const S3Location& location)
      : objects(Open(port, location)),
        shared(*SharedPageStore::Open(objects, budget, {})),
        tiers(budget, 0, {}, 256 << 20,
              {.store = shared.get(), .num_writers = 4, .prefetch = {}}) {}
  PageRef Make(uint64_t i) {
    return *MakePage(budget, KeyOf(i), i == 0 ? kRootPageKey : KeyOf(i - 1),
                     SomeBytes(kPageBytes, i));
  }

  MemoryBudget budget{int64_t{1} << 30};
  std::shared_ptr<ObjectStore> objects;
  std::unique_ptr<SharedPageStore> shared;
  TieredPageStore tiers;
};

class S3PagesTest : public S3ServerTest {
 protected:
  void SetUp() override {
    S3ServerTest::SetUp();
    if (IsSkipped()) return;
    a_ = std::make_unique<Machine>(server_->port(), location_);
    b_ = std::make_unique<Machine>(server_->port(), location_);
  }
  std::unique_ptr<Machine> a_, b_;
};

TEST_F(S3PagesTest, AnotherMachineFetchesThemAndNoByteMore) {
  constexpr uint64_t kPages = 62;  // of a session of 4,000 tokens
  std::vector<PageKey> keys;
  for (uint64_t i = 0; i < kPages; ++i) {
    keys.push_back(KeyOf(i));
    ASSERT_TRUE(a_->tiers.Put(a_->Make(i)).ok());
  }
  ASSERT_TRUE(Eventually([&] {
    a_->tiers.Flush();
    return a_->shared->stats().puts == int64_t{kPages};
  }));
  std::atomic<int> wakes{0};
  const auto begin = steady_clock::now();
  const auto prefetch = b_->tiers.Prefetch(
      {.keys = keys, .num_promised = kPages, .wake = [&] { ++wakes; }});
  ASSERT_NE(prefetch, nullptr);
  ASSERT_TRUE(Eventually([&] { return wakes == int{kPages}; }));
  const std::chrono::duration<double> took = steady_clock::now() - begin;
  for (uint64_t i = 0; i < kPages; ++i) {
    const auto hit = b_->tiers.Get(keys[i]);
    ASSERT_TRUE(hit.ok()) << hit.status();
    EXPECT_EQ(hit->page->bytes(), SomeBytes(kPageBytes, i));
  }
  const double page_bytes = kPages * static_cast<double>(kPageBytes);
  EXPECT_LE(static_cast<double>(b_->objects->stats().received_bytes),
            1.02 * page_bytes);
  RecordProperty("fetch_ms", static_cast<int>(1000 * took.count()));
  RecordProperty("first_ms",
                 static_cast<int>(1000 * prefetch->timing().first_seconds));
}

TEST_F(S3PagesTest, OneObjectWhoeverWritesIt) {
  std::vector<std::thread> writers;
  for (Machine* machine : {a_.get(), b_.get()}) {
    writers.emplace_back([machine] {
      for (uint64_t i = 0; i < 10; ++i) {
        EXPECT_TRUE(machine->shared->Put(machine->Make(i)).ok());
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(a_->shared->stats().puts + b_->shared->stats().puts, 10);
  EXPECT_EQ(a_->shared->stats().put_failures, 0);
  EXPECT_EQ(store_->List({.prefix = "pages/"})->objects.size(), 10u);
}

TEST_F(S3PagesTest, ADamagedObjectHeals) {
  ASSERT_TRUE(a_->shared->Put(a_->Make(1)).ok());
  const std::string name = PageObjectName(KeyOf(1));
  std::string bytes = store_->Get(name)->bytes;
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  ASSERT_TRUE(store_->Put(name, bytes).ok());
  EXPECT_TRUE(absl::IsDataLoss(b_->shared->Get(KeyOf(1)).status()));
  ASSERT_TRUE(b_->shared->Put(b_->Make(1)).ok());
  EXPECT_TRUE(b_->shared->Get(KeyOf(1)).ok());
}

TEST_F(S3PagesTest, AListingTellsWhetherAPageIsThere) {
  ASSERT_TRUE(a_->shared->Put(a_->Make(1)).ok());
  std::atomic<int> looks{0};
  for (const uint64_t i : {1u, 2u}) {
    b_->shared->Look(KeyOf(i), [&] { ++looks; });
  }
  ASSERT_TRUE(Eventually([&] { return looks == 2; }));
  EXPECT_TRUE(b_->shared->Contains(KeyOf(1)));
  EXPECT_FALSE(b_->shared->Wants(KeyOf(1)));
  EXPECT_EQ(b_->shared->stats().page_bytes, int64_t{kPageBytes});
  EXPECT_FALSE(b_->shared->Contains(KeyOf(2)));
}

TEST_F(S3PagesTest, TheStoresOwnClockTellsWhatIsOld) {
  const PageKey key = KeyOf(1);
  ASSERT_TRUE(a_->shared->Put(a_->Make(1)).ok());
  std::this_thread::sleep_for(milliseconds(4000));
  // In the same folder, just now.
  const std::string young = PageFolder(key[0]) + "young";
  ASSERT_TRUE(store_->Put(young, "x").ok());
  const int64_t now_ms =
      std::chrono::duration_cast<milliseconds>(
          std::chrono::system_clock::now().time_since_epoch())
          .count();
  const auto sweep = [&](int64_t believed_ms) {
    std::promise<absl::Status> ended;
    StartPageSweep(
        *store_,
        {.folder = PageFolder(key[0]),
         .clock_key = "clock",
         .now_ms = believed_ms,
         .life = milliseconds(3000)},
        [](const std::string&) {},
        [&](const absl::Status& status) { ended.set_value(status); });
    return ended.get_future().get();
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(sweep(now_ms + 3600 * 1000)));
  EXPECT_TRUE(store_->Get(PageObjectName(key)).ok());
  const absl::Status swept = sweep(now_ms);
  EXPECT_TRUE(swept.ok()) << swept;
  EXPECT_TRUE(absl::IsNotFound(store_->Get(PageObjectName(key)).status()));
  EXPECT_TRUE(store_->Get(young).ok());
}

}  // namespace
}  // namespace xcache
