// Models whose attention slides in some layers: blocks behind the window are
// rematerialized without those layers, and whoever needs them whole gets them
// whole.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

constexpr int kWindow = 200;

Harness::Options Sliding() {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  options.engine.window = kWindow;
  return options;
}

int64_t BlocksOf(Harness& h, const std::string& id) {
  return static_cast<int64_t>(h.Record(id).page_keys.size());
}

// Of so many blocks, those that the rows behind them do not see.
int64_t Behind(const Harness& h, int64_t num_blocks) {
  return FirstWholeBlock(h.engine->info(), num_blocks * 64);
}

TEST(CoreWindowTest, BlocksBehindTheWindowAreNotMadeWhole) {
  for (const size_t new_letters : {20u, 900u}) {
    Harness h(Sliding());
    h.NewSession("s", Letters(1000, 1));
    Ask(h, "s", "first");
    const int64_t blocks = BlocksOf(h, "s");
    h.Restart();
    // However long what is new: the first row of it counts.
    const FinalInfo final = Ask(h, "s", Letters(new_letters, 2));
    EXPECT_EQ(final.reused.disk, static_cast<uint64_t>(blocks * 64));
    EXPECT_EQ(h.engine->remats(), blocks);
    EXPECT_EQ(h.engine->partial_remats(), Behind(h, blocks));
    EXPECT_GT(h.engine->partial_remats(), blocks / 2);
    // Rule R5: what they do not take is given back.
    EXPECT_EQ(h.memory.used_bytes(MemoryAccount::kWorkingSets) +
                  h.memory.used_bytes(MemoryAccount::kSequences),
              h.engine->live_bytes());
    const int64_t remats = h.engine->remats();
    EXPECT_GT(Ask(h, "s", "more").reused.device, 1000u);
    EXPECT_EQ(h.engine->remats(), remats);
  }
}

TEST(CoreWindowTest, AShorterSessionOfTheSamePrefixGetsWholeBlocks) {
  Harness h(Sliding());
  const std::string system = Letters(700, 3);
  for (const char* id : {"long", "short"}) h.NewSession(id, system);
  Ask(h, "long", Letters(900, 4));
  const int64_t long_blocks = BlocksOf(h, "long");
  h.Restart();
  Ask(h, "long", "and?");
  EXPECT_EQ(h.engine->partial_remats(), Behind(h, long_blocks));
  const int64_t remats = h.engine->remats();
  ASSERT_EQ(remats, long_blocks);
  // Those of the system prompt that its window meets, once more.
  const int64_t shared = 704 / 64;
  Ask(h, "short", "hello");
  EXPECT_EQ(h.engine->remats(), remats + shared - Behind(h, shared));
  EXPECT_EQ(h.engine->partial_remats(), Behind(h, long_blocks));
  Ask(h, "long", "and now?");
  Ask(h, "short", "hello again");
  EXPECT_EQ(h.engine->remats(), remats + shared - Behind(h, shared));
}

TEST(CoreWindowTest, AForkFromAnEarlierTurnGetsWholeBlocks) {
  Harness h(Sliding());
  h.NewSession("s", Letters(500, 5));
  Ask(h, "s", Letters(300, 6));
  Ask(h, "s", Letters(600, 7));
  h.Restart();
  Ask(h, "s", "and?");
  const int64_t remats = h.engine->remats();
  ASSERT_TRUE(h.core->ForkSession(Fork("t", "s", "fork", 3)).ok());
  const FinalInfo final = Ask(h, "fork", "instead");
  EXPECT_GT(final.reused.total(), 700u);
  EXPECT_GT(final.reused.device, 500u);
  EXPECT_GT(final.reused.disk + final.reused.host, 0u);
  EXPECT_GT(h.engine->remats(), remats);
  Ask(h, "s", "and then?");
}

TEST(CoreWindowTest, AnAnswerIsRedoneAndATurnCancelledOnWholeBlocks) {
  Harness h(Sliding());
  h.NewSession("s", Letters(500, 8));
  Ask(h, "s", Letters(600, 9));
  h.Restart();
  const std::string answer = h.Record("s").messages.back().content;
  ChatTurn again = h.Turn("s", "");
  again.messages.clear();
  again.regenerate = true;
  for (int i = 0; i < 2; ++i) {
    const auto sink = h.Chat(again);
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->text(), answer);
    EXPECT_GT(sink->final().reused.total(), 1000u);
  }
  ChatTurn cancelled = h.Turn("s", Letters(700, 10));
  cancelled.cancellation = std::make_shared<Cancellation>();
  h.engine->set_step_delay(std::chrono::milliseconds(2));
  const auto sink = h.StartChat(cancelled);
  sink->WaitForDelta();
  cancelled.cancellation->Cancel();
  sink->Wait();
  h.engine->set_step_delay(std::chrono::microseconds(0));
  Ask(h, "s", "and now?");
}

// It was meant to begin behind the damaged page.
TEST(CoreWindowTest, BeforeADamagedPageBlocksAreMadeWholeAfterAll) {
  for (const bool lost : {true, false}) {
    Harness h(Sliding());
    h.NewSession("s", Letters(1500, 11));
    Ask(h, "s", "first");
    const std::vector<PageKey> keys = h.Record("s").page_keys;
    constexpr size_t kBad = 13;
    ASSERT_GT(keys.size(), kBad + 6);
    h.Restart();
    if (lost) {
      h.store.pages().Lose(keys[kBad]);
    } else {
      h.store.pages().Corrupt(keys[kBad]);
    }
    const FinalInfo final = Ask(h, "s", "and now?");
    EXPECT_EQ(final.reused.total(), (keys.size() - 1) * 64);
    EXPECT_GT(h.engine->partial_remats(), 0);
    Ask(h, "s", "more");
  }
}

// Page after page that the window meets is gone when it is wanted again.
TEST(CoreWindowTest, WhatCannotBeMadeWholeIsComputed) {
  Harness h(Sliding());
  h.NewSession("s", Letters(1500, 12));
  Ask(h, "s", Letters(600, 13));
  h.Restart();
  Ask(h, "s", "and?");
  const int64_t rows = h.engine->rows();
  ASSERT_TRUE(h.core->ForkSession(Fork("t", "s", "fork", 1)).ok());
  h.store.pages().Lose();
  const FinalInfo final = Ask(h, "fork", "instead");
  EXPECT_GE(h.engine->rows() - rows, 1500);
  EXPECT_EQ(final.reused.total(), 0u);
}

}  // namespace
}  // namespace xcache::testing
