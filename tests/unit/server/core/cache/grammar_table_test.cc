#include "server/core/cache/grammar_table.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/unit/server/core/fake_text.h"

namespace xcache {
namespace {

using Entry = GrammarTable::EntryPtr;

GrammarSpec Regex(std::string text) {
  GrammarSpec spec;
  spec.kind = GrammarSpec::Kind::kRegex;
  spec.text = std::move(text);
  return spec;
}

class GrammarTableTest : public ::testing::Test {
 protected:
  Entry Wait(Entry entry) {
    MutexLock lock(mu_);
    while (!entry->ready()) woken_.Wait(mu_);
    return entry;
  }
  Entry Get(const std::string& regex) {
    return Wait(table_.Get("t", Regex(regex)));
  }
  int64_t used() const { return memory_.used_bytes(MemoryAccount::kGrammars); }

  testing::FakeTokenizer tokenizer_;
  PlainMetrics metrics_;
  MemoryBudget memory_{int64_t{100} << 20};
  Mutex mu_;
  CondVar woken_;
  GrammarTable table_{tokenizer_, memory_, metrics_, [this] {
                        MutexLock lock(mu_);
                        woken_.SignalAll();
                      }};
};

TEST_F(GrammarTableTest, CompilesOnceAndKeeps) {
  const Entry first = Get("[ab]+");
  ASSERT_TRUE(first->status().ok()) << first->status();
  ASSERT_NE(first->grammar(), nullptr);
  EXPECT_GE(used(), first->grammar()->bytes());
  EXPECT_EQ(Get("[ab]+"), first);
  EXPECT_NE(Get("[abc]+"), first);
  EXPECT_EQ(metrics_.observations(CoreHistogram::kGrammarCompile), 2u);
}

TEST_F(GrammarTableTest, WhatIsWrongIsKeptToo) {
  const Entry wrong = Get("(");
  EXPECT_TRUE(absl::IsInvalidArgument(wrong->status()));
  EXPECT_EQ(wrong->grammar(), nullptr);
  EXPECT_EQ(Get("("), wrong);
}

TEST_F(GrammarTableTest, GivesWayToOthersWhereNobodyHoldsIt) {
  const Entry held = Get("a+");
  const int64_t before = used();
  const int64_t loose = Get("[b-y]{1,200}")->grammar()->bytes();
  EXPECT_EQ(used(), before + loose);
  const auto all =
      memory_.Reserve(MemoryAccount::kSequences, memory_.cap_bytes() - before);
  EXPECT_TRUE(all.has_value());
  EXPECT_EQ(used(), before);
  EXPECT_EQ(Get("a+"), held);
}

TEST_F(GrammarTableTest, WithoutMemoryItIsTriedAgain) {
  auto all = memory_.Reserve(MemoryAccount::kSequences, memory_.cap_bytes());
  const Entry none = Get("a");
  EXPECT_TRUE(absl::IsResourceExhausted(none->status())) << none->status();
  all.reset();
  EXPECT_TRUE(Get("a")->status().ok());
}

TEST_F(GrammarTableTest, KeepsAnEndOfThem) {
  for (size_t i = 0; i < GrammarTable::kMaxKept + 50; ++i) {
    Get(absl::StrCat("a{", 1 + i, "}"));
  }
  EXPECT_EQ(metrics_.observations(CoreHistogram::kGrammarCompile),
            GrammarTable::kMaxKept + 50);
  Get("a{1}");  // was dropped
  EXPECT_EQ(metrics_.observations(CoreHistogram::kGrammarCompile),
            GrammarTable::kMaxKept + 51);
}

TEST_F(GrammarTableTest, StopsWithWorkLeft) {
  std::vector<Entry> entries;
  for (int i = 0; i < 20; ++i) {
    entries.push_back(
        table_.Get(absl::StrCat("t", i % 3),
                   Regex(absl::StrCat("[a-z]{1,", 100 + i, "}"))));
  }
  table_.Stop();
  for (const Entry& entry : entries) {
    EXPECT_EQ(entry->ready(), entry->grammar() != nullptr);
  }
}

}  // namespace
}  // namespace xcache
