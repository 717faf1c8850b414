// Codecs whose exact window has several blocks (`window=W`): they are sealed,
// found and restored together.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

constexpr int kBlocks = 4;

Harness::Options Wide() {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  options.codec = "fake:window=256";
  return options;
}

uint64_t Windows(uint64_t num_tokens) { return num_tokens / 256 * 256; }

TEST(CoreExactWindowTest, ASessionComesBackWithItsFullWindows) {
  for (const size_t letters : {100u, 700u, 1010u}) {
    Harness h(Wide());
    h.NewSession("s", Letters(letters, 1));
    Ask(h, "s", "first");
    const auto first = static_cast<uint64_t>(h.Record("s").tokens.size());
    // In memory it goes on from its last token but the template's end.
    EXPECT_GE(Ask(h, "s", "and?").reused.device + 8, first);
    const uint64_t held = h.Record("s").page_keys.size();
    EXPECT_EQ(held % kBlocks, 0u);
    h.Restart();
    const FinalInfo final = Ask(h, "s", "and now?");
    EXPECT_EQ(final.reused.disk, held * 64);
    EXPECT_GE(final.reused.disk, Windows(first));
    EXPECT_EQ(h.memory.used_bytes(MemoryAccount::kWorkingSets) +
                  h.memory.used_bytes(MemoryAccount::kSequences),
              h.engine->live_bytes());
  }
}

TEST(CoreExactWindowTest, AMissingPageCostsItsWindow) {
  for (const bool lost : {true, false}) {
    Harness h(Wide());
    h.NewSession("s", Letters(1500, 2));
    Ask(h, "s", "first");
    const std::vector<PageKey> keys = h.Record("s").page_keys;
    ASSERT_EQ(keys.size(), 20u);
    h.Restart();
    if (lost) {
      h.store.pages().Lose(keys[10]);
    } else {
      h.store.pages().Corrupt(keys[10]);
    }
    // Blocks 8 to 11 are computed.
    EXPECT_EQ(Ask(h, "s", "and now?").reused.total(), (20u - kBlocks) * 64);
    const uint64_t held = h.Record("s").page_keys.size();
    EXPECT_GE(held, keys.size());
    h.Restart();
    // A page that is lost stays so in this store.
    EXPECT_EQ(Ask(h, "s", "and then?").reused.total(),
              (lost ? held - kBlocks : held) * 64);
  }
}

TEST(CoreExactWindowTest, SessionsShareFullWindowsAlone) {
  Harness h(Wide());
  const std::string system = Letters(600, 3);
  for (const char* id : {"a", "b", "c"}) h.NewSession(id, system);
  Ask(h, "a", Letters(200, 4));
  EXPECT_EQ(Ask(h, "b", Letters(200, 5)).reused.device, 512u);
  // From where it is: a block that ends within a window is of no use.
  ASSERT_TRUE(h.core->ForkSession(Fork("t", "a", "fork", 1)).ok());
  EXPECT_EQ(Ask(h, "fork", "instead").reused.device, 512u);
  h.Restart();
  EXPECT_EQ(Ask(h, "c", "and I?").reused.disk, 512u);
}

TEST(CoreExactWindowTest, WhatIsMadeIsWaitedFor) {
  Harness h(Wide());
  const std::string system = Letters(1200, 6);
  for (const char* id : {"a", "b"}) h.NewSession(id, system);
  h.engine->set_step_delay(std::chrono::milliseconds(2));
  const auto a = h.StartChat(h.Turn("a", "I"));
  const auto b = h.StartChat(h.Turn("b", "you"));
  a->Wait();
  b->Wait();
  ASSERT_TRUE(a->status().ok() && b->status().ok());
  EXPECT_EQ(a->final().reused.total() + b->final().reused.total(), 1024u);
  for (const auto& [digest, count] : h.engine->seal_counts()) {
    EXPECT_EQ(count, 1);
  }
}

TEST(CoreExactWindowTest, ARedoneAnswerBeginsWithinItsWindow) {
  Harness h(Wide());
  h.NewSession("s", Letters(300, 7));
  Ask(h, "s", Letters(100, 8));
  const std::string answer = h.Record("s").messages.back().content;
  ChatTurn again = h.Turn("s", "");
  again.messages.clear();
  again.regenerate = true;
  for (int i = 0; i < 2; ++i) {
    const auto sink = h.Chat(again);
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->text(), answer);
    EXPECT_GT(sink->final().reused.device, 300u);
  }
}

}  // namespace
}  // namespace xcache::testing
