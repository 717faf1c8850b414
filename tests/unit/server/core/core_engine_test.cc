// Answers and the bits of their log-probabilities are the same whatever was
// cached, and every session outlives the core.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/xcache/codec.h"
#include "tests/unit/server/core/real_core.h"

namespace xcache::testing {
namespace {

TEST_F(CoreEngineTest, RestartedForkedAndRecomputedChatsAnswerTheSameBits) {
  // The twin: never interrupted, one thread, other chunks.
  std::vector<std::vector<SampledToken>> expected;
  {
    RealCore twin(Dir("twin"), Restoring(/*step_rows=*/24), 256 << 20,
                  /*num_threads=*/1);
    twin.NewSession("s", Letters(300, 77));
    for (uint32_t turn = 0; turn < 4; ++turn) {
      const auto sink = twin.Chat(TurnOf("s", turn));
      ASSERT_TRUE(sink->status().ok()) << sink->status();
      EXPECT_EQ(sink->final().durability, Durability::kLocal);
      ASSERT_EQ(sink->tokens().size(), 70u);
      expected.push_back(sink->tokens());
    }
  }
  for (uint32_t turn = 0; turn < 4; ++turn) {
    RealCore core(Dir("a"), Restoring());
    if (turn == 0) core.NewSession("s", Letters(300, 77));
    const auto sink = core.Chat(TurnOf("s", turn));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    ExpectSame(sink->tokens(), expected[turn]);
    const FinalInfo final = sink->final();
    EXPECT_EQ(final.turn, turn + 1);
    EXPECT_EQ(final.reused.total() + final.prefilled_tokens,
              final.prompt_tokens);
    if (turn > 0) {
      EXPECT_GT(final.reused.disk, 250u);
      EXPECT_EQ(core.metrics.counter(CoreCounter::kPagesMissing), 0u);
    }
  }
  // A fork of the first three turns answers the fourth the same; so does a
  // session whose pages are never used.
  ServerCoreOptions recompute = Restoring();
  recompute.restore = ServerCoreOptions::Restore::kNever;
  RealCore core(Dir("a"), recompute);
  ASSERT_TRUE(core.core().ForkSession(Fork("t", "s", "f", 7)).ok());
  const auto forked = core.Chat(TurnOf("f", 3));
  ExpectSame(forked->tokens(), expected[3]);
  EXPECT_EQ(forked->final().reused.total(), 0u);
}

TEST_F(CoreEngineTest, PagesOfDifferentCodecsLiveSideBySide) {
  // Equal texts, so that nothing but the codec keeps their pages apart.
  std::vector<std::string> choices = CodecNames();
  for (const char* choice : {"lossless", "compact", "xquant-gqa:bits=3"}) {
    choices.emplace_back(choice);
  }
  std::map<std::string, std::vector<SampledToken>> expected;
  for (const std::string& choice : choices) {
    RealCore alone(Dir("alone-" + choice), Restoring());
    alone.NewSession("s", Letters(300, 77), choice);
    ASSERT_TRUE(alone.Chat(TurnOf("s", 0))->status().ok());
    expected[choice] = alone.Chat(TurnOf("s", 1))->tokens();
  }
  std::map<std::string, std::string> specs;
  {
    RealCore core(Dir("shared"), Restoring());
    for (const std::string& choice : choices) {
      core.NewSession(std::to_string(specs.size()), Letters(300, 77), choice);
      const std::string id = std::to_string(specs.size());
      ASSERT_TRUE(core.Chat(TurnOf(id, 0))->status().ok());
      specs[choice] = core.core().GetSession("t", id, false)->codec;
    }
  }
  // "lossless" is "kv-fp16": the very same pages.
  EXPECT_EQ(specs["lossless"], specs["kv-fp16"]);
  EXPECT_NE(specs["compact"], specs["xquant-gqa"]);
  RealCore core(Dir("shared"), Restoring());
  for (size_t i = 0; i < choices.size(); ++i) {
    const auto sink = core.Chat(TurnOf(std::to_string(i), 1));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    ExpectSame(sink->tokens(), expected[choices[i]]);
    EXPECT_GT(sink->final().reused.total(), 250u) << choices[i];
    EXPECT_EQ(core.core().GetSession("t", std::to_string(i), false)->codec,
              specs[choices[i]]);
  }
  EXPECT_EQ(core.metrics.counter(CoreCounter::kPagesCorrupt), 0u);
}

TEST_F(CoreEngineTest, BothRematPoliciesOnADeviceAnswerTheSameBits) {
  ServerCoreOptions options = Restoring();
  std::vector<std::vector<SampledToken>> expected;
  for (const char* remat : {"resume", "step"}) {
    // A folder for each, so that neither finds the other's pages; a restart
    // between the turns, so that pages are rematerialized.
    for (uint32_t turn = 0; turn < 2; ++turn) {
      RealCore core(Dir(remat), options, 256 << 20, 2, &MakeDeviceEngine);
      size_t at = 2 * turn;
      for (const char* codec : {"xquant-gqa:bits=4", "xquant-cl-gqa:bits=3"}) {
        const std::string id = "s" + std::to_string(at % 2);
        if (turn == 0) core.NewSession(id, Letters(300, 7), codec, remat);
        const auto sink = core.Chat(TurnOf(id, turn));
        ASSERT_TRUE(sink->status().ok()) << sink->status();
        if (turn > 0) {
          EXPECT_GT(sink->final().reused.disk, 250u);
        }
        if (remat == std::string("resume")) {
          expected.push_back(sink->tokens());
        } else {
          ExpectSame(sink->tokens(), expected[at]);
        }
        ++at;
      }
    }
  }
}

TEST_F(CoreEngineTest, EverySessionIsAtItsLastAcknowledgedTurn) {
  constexpr int kClients = 6;
  std::vector<std::map<std::string, uint64_t>> turns(kClients);
  for (int round = 0; round < 3; ++round) {
    // Little memory in the second round.
    RealCore core(Dir("s"), Restoring(),
                  round == 1 ? int64_t{24} << 20 : int64_t{256} << 20);
    std::vector<std::thread> threads;
    for (int c = 0; c < kClients; ++c) {
      threads.emplace_back([&, c] {
        std::mt19937 random(static_cast<uint32_t>(100 * round + c));
        auto& mine = turns[static_cast<size_t>(c)];
        for (int i = 0; i < 12; ++i) {
          if (mine.size() < 2) {
            const std::string id = "c" + std::to_string(c) + "-" +
                                   std::to_string(round) + "-" +
                                   std::to_string(i);
            core.NewSession(id, Letters(200, 5));
            mine[id] = 0;
          }
          const auto it = random() % 2 ? mine.begin() : std::prev(mine.end());
          ChatTurn turn =
              TurnOf(it->first, static_cast<uint32_t>(random()), 40);
          turn.options.max_tokens = static_cast<int64_t>(random() % 20 + 1);
          turn.expected_turn = it->second;
          turn.cancellation = std::make_shared<Cancellation>();
          const auto sink = core.Start(turn);
          if (random() % 4 == 0) {
            std::this_thread::sleep_for(
                std::chrono::microseconds(random() % 20000));
            turn.cancellation->Cancel();
          }
          sink->Wait();
          if (sink->status().ok()) {
            EXPECT_EQ(sink->final().durability, Durability::kLocal);
            EXPECT_EQ(sink->final().turn, ++it->second);
          } else {
            EXPECT_TRUE(absl::IsCancelled(sink->status())) << sink->status();
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_LE(core.memory().used_bytes(), core.memory().cap_bytes());
    EXPECT_LE(core.memory().peak_bytes(), core.memory().cap_bytes());
    EXPECT_EQ(core.metrics.counter(CoreCounter::kPagesCorrupt), 0u);
  }
  RealCore core(Dir("s"), Restoring());
  for (const auto& mine : turns) {
    for (const auto& [id, turn] : mine) {
      const auto info = core.core().GetSession("t", id, true);
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->turn, turn);
      EXPECT_EQ(info->messages.size(), 1 + 2 * turn);
    }
  }
}

TEST_F(CoreEngineTest, SharedSystemPromptIsSealedAndStoredOnce) {
  constexpr int kClients = 32;
  RealCore core(Dir("s"), Restoring());
  const std::string system = Letters(1500, 9);
  for (int i = 0; i < kClients; ++i) {
    core.NewSession("s" + std::to_string(i), system);
  }
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (int i = 0; i < kClients; ++i) {
    ChatTurn turn =
        TurnOf("s" + std::to_string(i), static_cast<uint32_t>(i), 8);
    turn.options.max_tokens = 2;
    sinks.push_back(core.Start(turn));
  }
  uint64_t reused = 0;
  uint64_t prompt_tokens = 0;
  for (const auto& sink : sinks) {
    sink->Wait();
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    reused += sink->final().reused.device;
    prompt_tokens = std::max(prompt_tokens, sink->final().prompt_tokens);
  }
  ASSERT_TRUE(core.store().Flush().ok());
  const uint64_t sealed = core.metrics.counter(CoreCounter::kBlocksSealed);
  EXPECT_EQ(core.store().stats().tier(PageTier::kDisk).num_pages,
            static_cast<int64_t>(sealed));
  const uint64_t shared =
      core.core().GetSession("t", "s0", false)->num_tokens / 64 - 1;
  EXPECT_GE(shared, 8u);
  EXPECT_GE(reused, (kClients - 1) * shared * 64);
  EXPECT_LE(sealed, shared + 2 * kClients);
}

}  // namespace
}  // namespace xcache::testing
