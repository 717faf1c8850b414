// That the bucket in memory, on which other tests stand, is an ObjectStore as
// object_store.h has it.
#include "tests/support/memory_object_store.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using Call = MemoryObjectStore::Call;

class MemoryObjectStoreTest : public ::testing::Test {
 protected:
  std::shared_ptr<MemoryBucket> bucket_ = std::make_shared<MemoryBucket>();
  MemoryObjectStore store_{bucket_};
};

TEST_F(MemoryObjectStoreTest, ConditionsHold) {
  const auto first =
      store_.Put("a/b", "one", {.condition = PutCondition::IfAbsent()});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(absl::IsAborted(
      store_.Put("a/b", "two", {.condition = PutCondition::IfAbsent()})
          .status()));
  const auto second =
      store_.Put("a/b", "two", {.condition = PutCondition::IfEtag(*first)});
  ASSERT_TRUE(second.ok());
  EXPECT_NE(*second, *first);
  EXPECT_TRUE(absl::IsAborted(
      store_.Put("a/b", "three", {.condition = PutCondition::IfEtag(*first)})
          .status()));
  EXPECT_TRUE(absl::IsAborted(
      store_.Put("none", "x", {.condition = PutCondition::IfEtag(*first)})
          .status()));
  EXPECT_EQ(store_.Get("a/b")->bytes, "two");
  EXPECT_TRUE(store_.Get("a/b", {.if_none_match = *second})->not_modified);
  EXPECT_TRUE(store_.Delete("a/b").ok());
  EXPECT_TRUE(store_.Delete("a/b").ok());
  EXPECT_TRUE(absl::IsNotFound(store_.Get("a/b").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_.Get("../b").status()));
}

TEST_F(MemoryObjectStoreTest, OneOfManyWritersWins) {
  std::atomic<int> won{0};
  std::vector<std::thread> writers;
  for (int i = 0; i < 8; ++i) {
    writers.emplace_back([&, i] {
      if (store_
              .Put("k", std::to_string(i),
                   {.condition = PutCondition::IfAbsent()})
              .ok()) {
        ++won;
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(won, 1);
}

TEST_F(MemoryObjectStoreTest, ListsInOrderPageByPage) {
  for (const char* key : {"p/2", "p/1", "p/3", "q/1"}) bucket_->Set(key, key);
  auto list = store_.List({.prefix = "p/", .max_keys = 2});
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->objects.size(), 2u);
  EXPECT_EQ(list->objects[0].key, "p/1");
  EXPECT_EQ(list->next_start_after, "p/2");
  list = store_.List(
      {.prefix = "p/", .start_after = list->next_start_after, .max_keys = 2});
  ASSERT_EQ(list->objects.size(), 1u);
  EXPECT_EQ(list->objects[0].key, "p/3");
  EXPECT_EQ(list->next_start_after, "");
}

TEST_F(MemoryObjectStoreTest, FaultsComeBeforeOrAfterTheDeed) {
  store_.FailNext(Call::kPut, 1, absl::UnavailableError("gone"));
  EXPECT_TRUE(absl::IsUnavailable(store_.Put("a", "1").status()));
  EXPECT_FALSE(bucket_->Find("a"));
  store_.FailNext(Call::kPut, 1, absl::UnavailableError("gone"),
                  MemoryObjectStore::When::kAfter);
  EXPECT_TRUE(absl::IsUnavailable(store_.Put("a", "1").status()));
  EXPECT_TRUE(bucket_->Find("a"));
  store_.FailAll(absl::UnavailableError("away"));
  EXPECT_TRUE(absl::IsUnavailable(store_.Get("a").status()));
  store_.FailAll(absl::OkStatus());
  EXPECT_TRUE(store_.Get("a").ok());
}

TEST_F(MemoryObjectStoreTest, AHeldAnswerEndsByItsTimeoutOrWhenItIsLetGo) {
  bucket_->Set("a", "1");
  store_.Pause();
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      store_.Get("a", {.timeout = milliseconds(20)}).status()));
  std::thread later([this] {
    while (store_.num_running() == 0) std::this_thread::yield();
    store_.Resume();
  });
  EXPECT_EQ(store_.Get("a")->bytes, "1");
  later.join();
}

TEST(MemoryObjectStoreEndTest, WaitingCallsAreCancelled) {
  absl::Status ended;
  {
    MemoryObjectStore store(std::make_shared<MemoryBucket>());
    store.Pause();
    store.Get("a", {}, [&](absl::StatusOr<StoredObject> object) {
      ended = object.status();
    });
  }
  EXPECT_TRUE(absl::IsCancelled(ended));
}

}  // namespace
}  // namespace xcache
