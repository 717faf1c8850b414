#include "server/core/cache/known_answers.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace xcache {
namespace {

using Tokens = std::vector<TokenId>;

TEST(KnownAnswersTest, KeepsThoseUsedLastWithinItsBytes) {
  MemoryBudget memory(64 << 20);
  // Of 256 bytes and 244 tokens: a kilobyte and a quarter each, so four.
  KnownAnswers answers(memory, 5000);
  const Digest place = KnownAnswers::Begin("t");
  const auto add = [&](const std::string& text) {
    answers.Add(place, text, Tokens(244, 1));
  };
  for (const char* text : {"a", "b", "c", "d"}) add(text);
  EXPECT_EQ(answers.size(), 4u);
  EXPECT_TRUE(answers.Find(place, "a").has_value());
  add("e");
  EXPECT_FALSE(answers.Find(place, "b").has_value());
  for (const char* text : {"a", "c", "d", "e"}) {
    EXPECT_TRUE(answers.Find(place, text).has_value()) << text;
  }
  EXPECT_LE(memory.used_bytes(MemoryAccount::kAnswers), 5000);
  EXPECT_GE(memory.used_bytes(MemoryAccount::kAnswers), 4 * 4 * 244);
  // One that has no room alone makes none.
  answers.Add(place, "f", Tokens(5000, 1));
  EXPECT_EQ(answers.size(), 4u);
  // One of a text that is there takes its place.
  answers.Add(place, "a", Tokens{1, 2, 3});
  EXPECT_EQ(answers.size(), 4u);
  EXPECT_EQ(answers.Find(place, "a"), (Tokens{1, 2, 3}));
}

TEST(KnownAnswersTest, TakesAPartOfTheCapAtMost) {
  MemoryBudget memory(64 << 10);
  KnownAnswers answers(memory, 1 << 20);
  answers.Add(KnownAnswers::Begin("t"), "a", Tokens(100, 1));
  answers.Add(KnownAnswers::Begin("t"), "b", Tokens(100, 1));
  EXPECT_EQ(answers.size(), 1u);
}

TEST(KnownAnswersTest, WithoutMemoryNothingIsKept) {
  MemoryBudget memory(1 << 20);
  const auto all = memory.Reserve(MemoryAccount::kSequences, 1 << 20);
  KnownAnswers answers(memory, 10000);
  answers.Add(KnownAnswers::Begin("t"), "a", Tokens(10, 1));
  EXPECT_EQ(answers.size(), 0u);
  EXPECT_FALSE(answers.Find(KnownAnswers::Begin("t"), "a").has_value());
}

TEST(KnownAnswersTest, PlacesDifferByTenantAndByEveryToken) {
  const Digest begin = KnownAnswers::Begin("t");
  EXPECT_NE(begin, KnownAnswers::Begin("u"));
  EXPECT_NE(KnownAnswers::After(begin, Tokens{1, 2}),
            KnownAnswers::After(begin, Tokens{1, 3}));
  EXPECT_NE(
      KnownAnswers::After(KnownAnswers::After(begin, Tokens{1}), Tokens{2}),
      KnownAnswers::After(begin, Tokens{1, 2}));
}

}  // namespace
}  // namespace xcache
