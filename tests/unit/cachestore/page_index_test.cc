#include "cachestore/tiers/page_index.h"

#include <map>
#include <random>
#include <set>
#include <vector>

#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

TEST(PageIndexTest, LeavesGoBeforeTheirParentsWhateverTheirUse) {
  PageIndex index;
  // 0 <- 1 <- 2 and 0 <- 3; the root of the tree is the least recently used.
  index.Add(KeyOf(0), kRootPageKey, 10, 0, 1);
  index.Add(KeyOf(1), KeyOf(0), 10, 0, 2);
  index.Add(KeyOf(2), KeyOf(1), 10, 0, 9);
  index.Add(KeyOf(3), KeyOf(0), 10, 0, 5);
  std::vector<PageKey> order;
  while (const auto key = index.Victim(nullptr)) {
    order.push_back(*key);
    index.Remove(*key);
  }
  EXPECT_EQ(order,
            (std::vector<PageKey>{KeyOf(3), KeyOf(2), KeyOf(1), KeyOf(0)}));
  EXPECT_EQ(index.num_pages(), 0);
  EXPECT_EQ(index.page_bytes(), 0);
}

TEST(PageIndexTest, TouchMovesAPageToTheEndAndNeverBack) {
  PageIndex index;
  index.Add(KeyOf(0), kRootPageKey, 1, 0, 1);
  index.Add(KeyOf(1), kRootPageKey, 1, 0, 2);
  index.Touch(KeyOf(0), 3);
  EXPECT_EQ(index.Victim(nullptr), KeyOf(1));
  index.Touch(KeyOf(0), 1);
  EXPECT_EQ(index.Find(KeyOf(0))->last_use, 3u);
  index.Touch(KeyOf(7), 9);  // not there: nothing
  EXPECT_EQ(index.num_candidates(), 2);
}

TEST(PageIndexTest, ClaimedPageKeepsItsAncestors) {
  PageIndex index;
  index.Claim(KeyOf(2));  // before it is there
  index.Add(KeyOf(0), kRootPageKey, 1, 0, 1);
  index.Add(KeyOf(1), KeyOf(0), 1, 0, 2);
  index.Add(KeyOf(2), KeyOf(1), 1, 0, 3);
  EXPECT_EQ(index.Victim(nullptr), std::nullopt);
  index.Claim(KeyOf(2));
  index.Unclaim(KeyOf(2));
  EXPECT_EQ(index.Victim(nullptr), std::nullopt);
  index.Unclaim(KeyOf(2));
  EXPECT_EQ(index.Victim(nullptr), KeyOf(2));
}

TEST(PageIndexTest, ChildMayComeBeforeItsParent) {
  PageIndex index;
  index.Add(KeyOf(1), KeyOf(0), 1, 0, 1);
  EXPECT_FALSE(index.Contains(KeyOf(0)));
  index.Add(KeyOf(0), kRootPageKey, 1, 0, 2);
  EXPECT_FALSE(index.IsLeaf(KeyOf(0)));
  EXPECT_EQ(index.Victim(nullptr), KeyOf(1));
  EXPECT_TRUE(index.Remove(KeyOf(1)));
  EXPECT_FALSE(index.Remove(KeyOf(1)));
  EXPECT_EQ(index.Victim(nullptr), KeyOf(0));
}

TEST(PageIndexTest, VictimSkipsWhatMayNotGo) {
  PageIndex index;
  for (int i = 0; i < 3; ++i) {
    index.Add(KeyOf(i), kRootPageKey, 1, 0, static_cast<uint64_t>(i));
  }
  EXPECT_EQ(index.Victim([](const PageKey& k) { return k != KeyOf(0); }),
            KeyOf(1));
  EXPECT_EQ(index.Victim([](const PageKey&) { return false; }), std::nullopt);
}

// Against a plain model that recomputes everything from scratch.
TEST(PageIndexTest, AgreesWithAModelOverRandomSteps) {
  struct Node {
    PageKey parent;
    uint64_t last_use;
  };
  std::mt19937 random(7);
  PageIndex index;
  std::map<PageKey, Node> present;
  std::multiset<PageKey> claims;
  uint64_t clock = 0;
  for (int step = 0; step < 20000; ++step) {
    const int i = static_cast<int>(random() % 40);
    const PageKey key = KeyOf(i);
    const PageKey parent = i < 4 ? kRootPageKey : KeyOf(i / 3);
    switch (random() % 5) {
      case 0:
      case 1:
        if (!present.contains(key)) {
          index.Add(key, parent, 10 + i, 0, ++clock);
          present[key] = {parent, clock};
        }
        break;
      case 2:
        EXPECT_EQ(index.Remove(key), present.erase(key) == 1);
        break;
      case 3:
        index.Touch(key, ++clock);
        if (present.contains(key)) present[key].last_use = clock;
        break;
      default:
        if (claims.contains(key)) {
          index.Unclaim(key);
          claims.erase(claims.find(key));
        } else {
          index.Claim(key);
          claims.insert(key);
        }
    }
    const PageKey* victim = nullptr;
    uint64_t oldest = 0;
    for (const auto& [candidate, node] : present) {
      bool is_leaf = !claims.contains(candidate);
      for (const auto& [other, other_node] : present) {
        is_leaf = is_leaf && other_node.parent != candidate;
      }
      if (is_leaf && (victim == nullptr || node.last_use < oldest)) {
        victim = &candidate;
        oldest = node.last_use;
      }
    }
    const auto found = index.Victim(nullptr);
    ASSERT_EQ(found.has_value(), victim != nullptr) << step;
    if (victim != nullptr) {
      ASSERT_EQ(*found, *victim) << step;
    }
    ASSERT_EQ(index.num_pages(), static_cast<int64_t>(present.size()));
  }
}

}  // namespace
}  // namespace xcache
