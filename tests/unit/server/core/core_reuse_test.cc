// Prefix reuse and what it must never change: the answer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

Harness::Options AlwaysRestore() {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  return options;
}

TEST(CoreReuseTest, NextTurnGoesOnFromTheWorkingSet) {
  Harness h;
  h.NewSession("s", Letters(300, 1));
  const auto first = h.Chat(h.Turn("s", Letters(100, 2)));
  ASSERT_TRUE(first->status().ok()) << first->status();
  EXPECT_EQ(first->final().reused.total(), 0u);
  const SessionRecord before = h.Record("s");
  EXPECT_TRUE(h.core->GetSession("t", "s", false)->in_memory);
  const auto second = h.Chat(h.Turn("s", "and now?"));
  const FinalInfo final = second->final();
  EXPECT_EQ(second->text(), h.Greedy(h.PromptOf(before, "and now?")));
  // Everything but the end of the last answer was there.
  EXPECT_GE(final.reused.device, before.tokens.size() - 3);
  EXPECT_EQ(final.reused.device + final.prefilled_tokens, final.prompt_tokens);
  EXPECT_EQ(final.reused.host + final.reused.disk, 0u);
}

TEST(CoreReuseTest, AfterARestartPagesAreRematerialized) {
  for (const bool from_disk : {true, false}) {
    Harness h(AlwaysRestore());
    h.NewSession("s", Letters(500, 1));
    ASSERT_TRUE(h.Chat(h.Turn("s", Letters(200, 2)))->status().ok());
    const SessionRecord before = h.Record("s");
    EXPECT_EQ(before.page_keys.size(), before.tokens.size() / 64);
    h.Restart(from_disk);
    const auto sink = h.Chat(h.Turn("s", "and now?"));
    const FinalInfo final = sink->final();
    EXPECT_EQ(sink->text(), h.Greedy(h.PromptOf(before, "and now?")));
    EXPECT_EQ(from_disk ? final.reused.disk : final.reused.host,
              before.tokens.size() / 64 * 64);
    EXPECT_EQ(final.reused.total() + final.prefilled_tokens,
              final.prompt_tokens);
    EXPECT_GT(final.timings.restore_us, 0);
    EXPECT_GE(final.timings.restore_us, final.timings.remat_us);
    EXPECT_EQ(final.turn, 2u);
  }
}

TEST(CoreReuseTest, WholeHistoryIsFoundByItsTokens) {
  Harness h;
  ChatTurn turn = h.Turn("", Letters(700, 1));
  const auto first = h.Chat(turn);
  EXPECT_EQ(first->final().reused.total(), 0u);
  EXPECT_EQ(first->final().turn, 0u);
  EXPECT_EQ(first->final().durability, Durability::kNone);
  // The same history, and one that differs after 400 characters.
  const auto again = h.Chat(turn);
  EXPECT_EQ(again->text(), first->text());
  EXPECT_EQ(again->final().reused.device, (702 + 2) / 64 * 64u);
  turn.messages[0].content[400] = '!';
  EXPECT_EQ(h.Chat(turn)->final().reused.device, 402 / 64 * 64u);
}

TEST(CoreReuseTest, SharedSystemPromptIsPrefilledOnceForAll) {
  constexpr int kClients = 64;
  Harness::Options options;
  options.engine.step_delay = std::chrono::microseconds(200);
  Harness h(options);
  const std::string system = Letters(1000, 7);
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (int i = 0; i < kClients; ++i) {
    h.NewSession("s" + std::to_string(i), system);
  }
  for (int i = 0; i < kClients; ++i) {
    const std::string name = std::to_string(i);
    sinks.push_back(h.StartChat(
        h.Turn("s" + name,
               "question " + Letters(20, 100u + static_cast<uint32_t>(i)), 4)));
  }
  uint64_t reused = 0;
  for (const auto& sink : sinks) {
    sink->Wait();
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    reused += sink->final().reused.device;
  }
  for (const auto& [digest, count] : h.engine->seal_counts()) {
    EXPECT_EQ(count, 1);
  }
  const uint64_t shared_blocks = 1004 / 64;
  EXPECT_EQ(reused, (kClients - 1) * shared_blocks * 64);
  // Its pages, and for each client at most one block of its own.
  EXPECT_EQ(h.store.pages().puts(),
            static_cast<int64_t>(h.engine->seal_counts().size()));
  EXPECT_GT(h.Count(CoreCounter::kSingleFlightWaits), 0u);
  EXPECT_EQ(h.Count(CoreCounter::kReusedDevice), reused);
}

TEST(CoreReuseTest, SharedPagesAreRestoredOnceForAll) {
  Harness::Options options = AlwaysRestore();
  Harness h(options);
  const std::string system = Letters(1000, 7);
  for (int i = 0; i < 16; ++i) {
    h.NewSession("s" + std::to_string(i), system);
  }
  ASSERT_TRUE(h.Chat(h.Turn("s0", "first"))->status().ok());
  h.Restart();
  h.store.pages().set_load_delay(std::chrono::milliseconds(1));
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (int i = 1; i < 16; ++i) {
    sinks.push_back(
        h.StartChat(h.Turn("s" + std::to_string(i),
                           Letters(20, 100u + static_cast<uint32_t>(i)), 2)));
  }
  for (const auto& sink : sinks) {
    sink->Wait();
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->final().reused.total(), 1004 / 64 * 64u);
  }
  EXPECT_EQ(h.engine->remats(), 1004 / 64);
}

TEST(CoreReuseTest, AnotherTenantSharesNothing) {
  Harness h;
  ChatTurn turn = h.Turn("", Letters(700, 1));
  const auto mine = h.Chat(turn);
  turn.tenant = "other";
  const auto theirs = h.Chat(turn);
  EXPECT_EQ(theirs->final().reused.total(), 0u);
  EXPECT_EQ(theirs->text(), mine->text());
  for (const auto& [digest, count] : h.engine->seal_counts()) {
    EXPECT_EQ(count, 2);
  }
}

TEST(CoreReuseTest, TakesOverWhenTheMakerOfABlockIsCancelled) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  ChatTurn turn = h.Turn("", Letters(2000, 1), 4);
  turn.cancellation = std::make_shared<Cancellation>();
  const auto maker = h.StartChat(turn);
  const auto cancellation = turn.cancellation;
  turn.cancellation = nullptr;
  const auto waiter = h.StartChat(turn);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  cancellation->Cancel();
  maker->Wait();
  waiter->Wait();
  EXPECT_TRUE(absl::IsCancelled(maker->status())) << maker->status();
  ASSERT_TRUE(waiter->status().ok()) << waiter->status();
  EXPECT_GT(waiter->final().reused.device, 0u);
  for (const auto& [digest, count] : h.engine->seal_counts()) {
    EXPECT_EQ(count, 1);
  }
}

// Rule R3: whatever happens to a page, the answer is the same and the request
// goes well.
TEST(CoreReuseTest, FaultyPagesAreRecomputedAndCounted) {
  struct Fault {
    const char* name;
    void (*cause)(Harness&);
    CoreCounter counter;
  };
  const Fault faults[] = {
      {"corrupt", [](Harness& h) { h.store.pages().Corrupt(); },
       CoreCounter::kPagesCorrupt},
      {"lost", [](Harness& h) { h.store.pages().Lose(); },
       CoreCounter::kPagesMissing},
      {"broken", [](Harness& h) { h.store.pages().Break(); },
       CoreCounter::kPagesCorrupt},
      {"remat fails", [](Harness& h) { h.engine->set_remat_failures(3); },
       CoreCounter::kPagesCorrupt},
      {"no memory to load",
       [](Harness& h) { h.store.pages().set_load_refusals(5); },
       CoreCounter::kPrefilledTokens},
  };
  for (const Fault& fault : faults) {
    SCOPED_TRACE(fault.name);
    Harness h(AlwaysRestore());
    h.NewSession("s", Letters(900, 1));
    ASSERT_TRUE(h.Chat(h.Turn("s", "one"))->status().ok());
    const SessionRecord before = h.Record("s");
    h.Restart();
    fault.cause(h);
    const auto sink = h.Chat(h.Turn("s", "two"));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->text(), h.Greedy(h.PromptOf(before, "two")));
    EXPECT_GT(h.Count(fault.counter), 0u);
    const FinalInfo final = sink->final();
    EXPECT_EQ(final.reused.total() + final.prefilled_tokens,
              final.prompt_tokens);
    // And again, once everything is well.
    h.Restart();
    const SessionRecord after = h.Record("s");
    EXPECT_EQ(h.Chat(h.Turn("s", "three"))->text(),
              h.Greedy(h.PromptOf(after, "three")));
  }
}

TEST(CoreReuseTest, NoCacheNeitherLooksUpNorKeeps) {
  Harness h;
  ChatTurn turn = h.Turn("", Letters(700, 1));
  turn.options.no_cache = true;
  const auto first = h.Chat(turn);
  ASSERT_TRUE(first->status().ok());
  EXPECT_EQ(h.store.pages().num_pages(), 0u);
  EXPECT_EQ(h.core->Snapshot().working_set_blocks, 0u);
  turn.options.no_cache = false;
  const auto second = h.Chat(turn);
  EXPECT_EQ(second->final().reused.total(), 0u);
  turn.options.no_cache = true;
  const auto third = h.Chat(turn);
  EXPECT_EQ(third->final().reused.total(), 0u);
  EXPECT_EQ(third->text(), first->text());
}

TEST(CoreReuseTest, NoCacheTurnOfASessionIsStillATurn) {
  Harness h;
  h.NewSession("s", Letters(300, 1));
  ChatTurn turn = h.Turn("s", "hello");
  turn.options.no_cache = true;
  const auto sink = h.Chat(turn);
  EXPECT_EQ(sink->final().durability, Durability::kLocal);
  EXPECT_EQ(sink->final().turn, 1u);
  const SessionRecord before = h.Record("s");
  EXPECT_TRUE(before.page_keys.empty());
  EXPECT_EQ(h.Chat(h.Turn("s", "more"))->text(),
            h.Greedy(h.PromptOf(before, "more")));
}

TEST(CoreReuseTest, ScoreReusesOnlyWholeBlocksBeforeTheFirst) {
  Harness h;
  GenerateRequest generate;
  generate.tenant = "t";
  for (const char c : Letters(500, 3)) generate.prompt.push_back(c);
  generate.options.max_tokens = 1;
  ASSERT_TRUE(h.Generate(generate)->status().ok());
  ScoreRequest score;
  score.tenant = "t";
  score.tokens = generate.prompt;
  score.top_logprobs = 3;
  const auto all = h.Score(score);
  ASSERT_TRUE(all->status().ok()) << all->status();
  EXPECT_EQ(all->final().reused.total(), 0u);
  const std::vector<SampledToken> expected = all->tokens();
  ASSERT_EQ(expected.size(), 499u);
  for (const int64_t first : {1, 64, 65, 66, 130, 499}) {
    score.first = first;
    const auto some = h.Score(score);
    EXPECT_EQ(some->final().reused.device,
              static_cast<uint64_t>((first - 1) / 64 * 64));
    const auto tokens = some->tokens();
    ASSERT_EQ(tokens.size(), static_cast<size_t>(500 - first));
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(tokens[i].token, score.tokens[static_cast<size_t>(first) + i]);
      EXPECT_EQ(tokens[i].logprob,
                expected[static_cast<size_t>(first) - 1 + i].logprob);
      EXPECT_EQ(tokens[i].top.size(), 3u);
      EXPECT_GE(tokens[i].top[0].logprob, tokens[i].logprob);
    }
  }
  score.first = 500;  // nothing would be scored
  EXPECT_TRUE(absl::IsInvalidArgument(h.Score(score)->status()));
}

TEST(CoreReuseTest, ScoreAgreesWithTheGenerationsOwnLogprobs) {
  Harness h;
  GenerateRequest generate;
  generate.tenant = "t";
  for (const char c : Letters(120, 3)) generate.prompt.push_back(c);
  generate.options.max_tokens = 80;
  generate.options.ignore_eos = true;
  generate.options.num_logprobs = 1;
  const auto generated = h.Generate(generate);
  ASSERT_EQ(generated->tokens().size(), 80u);
  ScoreRequest score;
  score.tenant = "t";
  score.tokens = generate.prompt;
  score.first = 120;
  for (const SampledToken& token : generated->tokens()) {
    score.tokens.push_back(token.token);
  }
  const auto scored = h.Score(score)->tokens();
  ASSERT_EQ(scored.size(), 80u);
  for (size_t i = 0; i < scored.size(); ++i) {
    EXPECT_EQ(scored[i].logprob, generated->tokens()[i].logprob) << i;
  }
}

}  // namespace
}  // namespace xcache::testing
