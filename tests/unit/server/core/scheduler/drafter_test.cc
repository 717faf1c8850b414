#include "server/core/scheduler/drafter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <string_view>
#include <vector>

namespace xcache {
namespace {

std::vector<TokenId> Ids(std::string_view letters) {
  return {letters.begin(), letters.end()};
}

std::vector<TokenId> DraftOf(std::string_view context) {
  Drafter drafter;
  drafter.Look(Ids(context));
  return {drafter.tokens().begin(), drafter.tokens().end()};
}

// By the definition: of all shorter prefixes the one with the longest common
// end, at most 16; of equally long ones the last.
std::vector<TokenId> Expected(const std::vector<TokenId>& context) {
  size_t best = 0, next = 0;
  for (size_t end = 1; end < context.size(); ++end) {
    size_t length = 0;
    while (length < std::min(end, size_t{16}) &&
           context[end - 1 - length] == context[context.size() - 1 - length]) {
      ++length;
    }
    if (length > 0 && length >= best) {
      best = length;
      next = end;
    }
  }
  std::vector<TokenId> all = context;
  if (best > 0) {
    while (all.size() < context.size() + Drafter::kMostTokens + 1) {
      all.push_back(all[next + all.size() - context.size()]);
    }
  }
  return {all.begin() + static_cast<ptrdiff_t>(context.size()), all.end()};
}

TEST(DrafterTest, GoesOnAsAfterTheLongestMatch) {
  EXPECT_EQ(DraftOf("the old man. the ol"), Ids("d man. the old m"));
  // Not as after the last place where a shorter end stands.
  EXPECT_EQ(DraftOf("abcX bcY abc"), Ids("X bcY abcX bcY a"));
  EXPECT_EQ(DraftOf("abcX abcY abc"), Ids("Y abcY abcY abcY"));
  // Beyond the context's end with itself.
  EXPECT_EQ(DraftOf("-aa"), Ids("aaaaaaaaaaaaaaaa"));
}

TEST(DrafterTest, IsWhatItsDefinitionSays) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TokenId> context(random() % 80);
    const uint32_t letters = 1 + random() % 4;
    for (TokenId& token : context) {
      token = static_cast<TokenId>(random() % letters);
    }
    Drafter drafter;
    drafter.Look(context);
    const std::vector<TokenId> found(drafter.tokens().begin(),
                                     drafter.tokens().end());
    EXPECT_EQ(found, Expected(context)) << round;
  }
}

TEST(DrafterTest, WhatNeverWasHasNoDraft) {
  EXPECT_TRUE(DraftOf("").empty());
  EXPECT_TRUE(DraftOf("a").empty());
  EXPECT_TRUE(DraftOf("abcdefgh").empty());
}

TEST(DrafterTest, OfAnotherAnswerNothingIsLeft) {
  Drafter drafter;
  drafter.Look(Ids("abab"));
  EXPECT_FALSE(drafter.tokens().empty());
  drafter.Look(Ids("abcd"));
  EXPECT_TRUE(drafter.tokens().empty());
  drafter.Follow('a');  // and it takes no harm
}

TEST(DrafterTest, LearnsHowOftenItIsRight) {
  Drafter drafter;
  const double before = drafter.chance(0);
  for (int i = 0; i < 100; ++i) {
    drafter.Look(Ids("xay..a"));
    drafter.Follow('y');
    drafter.Follow('?');  // of the next length: wrong
    drafter.Follow('.');  // after that nothing is said of the draft
  }
  EXPECT_GT(drafter.chance(0), 0.95);
  EXPECT_LT(drafter.chance(1), 0.05);
  EXPECT_GT(drafter.chance(2), before);
  for (int i = 0; i < 100; ++i) {
    drafter.Look(Ids("xay..a"));
    drafter.Follow('?');
  }
  EXPECT_LT(drafter.chance(0), 0.05);
}

TEST(DrafterTest, ChancesAreOfTheMatchedLength) {
  Drafter drafter;
  drafter.Look(Ids("abcdef...abcde"));
  const double of_five = drafter.chance(0);
  drafter.Look(Ids("zde?abcdef...abcde"));
  EXPECT_EQ(drafter.chance(0), of_five);
  drafter.Look(Ids("e?.e"));
  EXPECT_LT(drafter.chance(0), of_five);
  EXPECT_EQ(drafter.chance(4), of_five);
}

}  // namespace
}  // namespace xcache
