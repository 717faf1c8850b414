// Blocks shared by key: held ones stay, the rest goes by age and from the
// leaves, and the budget counts each once.
#include "server/core/cache/blocks.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cachestore/page_key.h"
#include "engine/base/memory_budget.h"
#include "server/core/core_metrics.h"

namespace xcache {
namespace {

class TestBlock final : public KvBlock {
 public:
  explicit TestBlock(bool is_whole = true) : whole_(is_whole) {}
  size_t bytes() const override { return 1; }
  bool whole() const override { return whole_; }

 private:
  const bool whole_;
};

class BlockCacheTest : public ::testing::Test {
 protected:
  static PageKey Key(int n) { return Sha256Of(std::to_string(n)); }
  BlockHold Insert(int key, int64_t index = 0, bool whole = true) {
    return cache_.Insert(Key(key), index, std::make_shared<TestBlock>(whole),
                         *budget_.Reserve(MemoryAccount::kSequences, 100),
                         /*stored=*/true);
  }

  PlainMetrics metrics_;
  MemoryBudget budget_{10000};
  BlockCache cache_{metrics_};
};

TEST_F(BlockCacheTest, HeldBlocksAreNeverEvicted) {
  {
    const BlockHold held = Insert(1);
    EXPECT_EQ(cache_.Evict(1000), 0);
    EXPECT_EQ(budget_.used_bytes(MemoryAccount::kSequences), 100);
  }
  EXPECT_EQ(budget_.used_bytes(MemoryAccount::kWorkingSets), 100);
  EXPECT_EQ(cache_.Evict(1000), 100);
  EXPECT_EQ(budget_.used_bytes(), 0);
  EXPECT_FALSE(cache_.Acquire(Key(1)).has_value());
  EXPECT_EQ(metrics_.counter(CoreCounter::kWorkingSetEvictions), 1u);
}

TEST_F(BlockCacheTest, SharedBlocksAreCountedOnce) {
  BlockHold first = Insert(1);
  std::optional<BlockHold> second = cache_.Acquire(Key(1));
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->kv(), first.kv());
  EXPECT_EQ(budget_.used_bytes(), 100);
  first.Release(cache_.Tick());
  EXPECT_EQ(cache_.Evict(1000), 0);
  second.reset();
  EXPECT_EQ(cache_.Evict(1000), 100);
}

TEST_F(BlockCacheTest, SecondBlockOfAKeyIsItsHoldersOwn) {
  const BlockHold first = Insert(1);
  {
    const BlockHold second = Insert(1);
    EXPECT_NE(second.kv(), first.kv());
    EXPECT_EQ(budget_.used_bytes(), 200);
    EXPECT_EQ(cache_.Acquire(Key(1))->kv(), first.kv());
  }
  EXPECT_EQ(budget_.used_bytes(), 100);
}

TEST_F(BlockCacheTest, ABlockThatIsNotWholeGivesWayToOneThatIs) {
  for (const bool held : {false, true}) {
    cache_.Evict(1000);
    BlockHold partial = Insert(1, 0, /*whole=*/false);
    BlockHold second = *cache_.Acquire(Key(1), /*whole=*/false);
    EXPECT_EQ(second.kv(), partial.kv());
    EXPECT_FALSE(cache_.Acquire(Key(1)).has_value());
    EXPECT_FALSE(cache_.Contains(Key(1)));
    EXPECT_TRUE(cache_.Contains(Key(1), /*whole=*/false));
    if (!held) {
      partial.Release(cache_.Tick());
      second.Release(cache_.Tick());
    }
    const BlockHold whole = Insert(1);
    EXPECT_EQ(cache_.Acquire(Key(1))->kv(), whole.kv());
    EXPECT_EQ(cache_.Acquire(Key(1), /*whole=*/false)->kv(), whole.kv());
    EXPECT_EQ(budget_.used_bytes(), held ? 200 : 100);
    EXPECT_EQ(cache_.num_blocks(), held ? 2u : 1u);
    if (held) {
      // It is its holders' own from now on, until the last one lets go.
      partial.Release(cache_.Tick());
      EXPECT_FALSE(second.kv()->whole());
      EXPECT_EQ(budget_.used_bytes(), 200);
      second.Release(cache_.Tick());
      EXPECT_EQ(cache_.Evict(1000), 0);
      EXPECT_EQ(budget_.used_bytes(), 100);
    }
    // The other way round it is as ever.
    EXPECT_NE(Insert(1, 0, /*whole=*/false).kv(), whole.kv());
    EXPECT_EQ(cache_.Acquire(Key(1), /*whole=*/false)->kv(), whole.kv());
    EXPECT_EQ(budget_.used_bytes(), 100);
  }
}

TEST_F(BlockCacheTest, OldestGoFirstAndOfEquallyOldOnesTheLeaves) {
  std::vector<BlockHold> chain;
  for (int i = 0; i < 3; ++i) chain.push_back(Insert(i, i));
  const uint64_t tick = cache_.Tick();
  ReleaseFrom(chain, 0, tick);
  Insert(9).Release(cache_.Tick());
  EXPECT_EQ(cache_.OldestTick(), tick);
  EXPECT_EQ(cache_.Evict(1), 100);
  EXPECT_FALSE(cache_.Contains(Key(2)));
  EXPECT_EQ(cache_.Evict(150), 200);
  EXPECT_FALSE(cache_.Contains(Key(0)));
  EXPECT_TRUE(cache_.Contains(Key(9)));
}

TEST_F(BlockCacheTest, UseMakesABlockYoung) {
  Insert(1).Release(cache_.Tick());
  Insert(2).Release(cache_.Tick());
  cache_.Acquire(Key(1))->Release(cache_.Tick());
  EXPECT_EQ(cache_.Evict(1), 100);
  EXPECT_TRUE(cache_.Contains(Key(1)));
  EXPECT_FALSE(cache_.Contains(Key(2)));
}

TEST_F(BlockCacheTest, DropTakesOnlyWhatNobodyHolds) {
  const BlockHold held = Insert(1);
  Insert(2).Release(cache_.Tick());
  const std::vector<PageKey> keys = {Key(1), Key(2), Key(3)};
  EXPECT_EQ(cache_.Drop(keys), 100);
  EXPECT_TRUE(cache_.Contains(Key(1)));
}

TEST_F(BlockCacheTest, PrivateBlocksAreFoundByNobody) {
  {
    const BlockHold hold =
        cache_.KeepPrivate(std::make_shared<TestBlock>(),
                           *budget_.Reserve(MemoryAccount::kSequences, 100));
    EXPECT_FALSE(hold.stored());
    EXPECT_EQ(cache_.num_blocks(), 1u);
  }
  EXPECT_EQ(cache_.num_blocks(), 0u);
  EXPECT_EQ(budget_.used_bytes(), 0);
}

}  // namespace
}  // namespace xcache
