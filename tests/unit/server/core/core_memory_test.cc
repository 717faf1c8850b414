// Memory of working sets: what gives way, who waits, and where an answer ends.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

// Rule R5: never more than the cap, and no answer changes for it.
TEST(CoreMemoryTest, LittleMemoryPreemptsAndAnswersAllTheSame) {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  // Each of 8 requests needs about 12 blocks of 1,000 bytes.
  options.memory_bytes = 30000;
  Harness h(options);
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (uint32_t i = 0; i < 8; ++i) {
    sinks.push_back(Start(h, RawPrompt(600, i, 100)));
  }
  for (uint32_t i = 0; i < 8; ++i) {
    sinks[i]->Wait();
    ASSERT_TRUE(sinks[i]->status().ok()) << sinks[i]->status();
    std::vector<TokenId> prompt = RawPrompt(600, i, 1).prompt;
    std::string expected;
    for (const TokenId token :
         FakeGreedy(options.engine, kCodec, prompt, 100, true)) {
      expected += h.tokenizer.TokenBytes(token, false);
    }
    EXPECT_EQ(sinks[i]->text(), expected);
    EXPECT_EQ(sinks[i]->final().generated_tokens, 100u);
  }
  EXPECT_GT(h.Count(CoreCounter::kPreemptions), 0u);
  EXPECT_LE(h.engine->peak_bytes(), options.memory_bytes);
  EXPECT_LE(h.memory.peak_bytes(), options.memory_bytes);
}

// A device may have less room than the budget believes. No page is lost to it.
TEST(CoreMemoryTest, AFullDevicePreemptsAndAnswersAllTheSame) {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  Harness h(options);
  h.engine->set_device_bytes(30000);
  for (int round = 0; round < 2; ++round) {
    std::vector<std::shared_ptr<CollectSink>> sinks;
    for (uint32_t i = 0; i < 8; ++i) {
      sinks.push_back(Start(h, RawPrompt(600, i, 100)));
    }
    for (uint32_t i = 0; i < 8; ++i) {
      sinks[i]->Wait();
      ASSERT_TRUE(sinks[i]->status().ok()) << sinks[i]->status();
      std::string expected;
      for (const TokenId token :
           FakeGreedy(options.engine, kCodec, RawPrompt(600, i, 1).prompt, 100,
                      true)) {
        expected += h.tokenizer.TokenBytes(token, false);
      }
      EXPECT_EQ(sinks[i]->text(), expected);
    }
  }
  EXPECT_GT(h.engine->refusals(), 0);
  EXPECT_GT(h.engine->remats(), 0);
  EXPECT_GT(h.Count(CoreCounter::kPreemptions), 0u);
  EXPECT_EQ(h.Count(CoreCounter::kPagesCorrupt), 0u);
}

TEST(CoreMemoryTest, WhatCannotFitOnTheDeviceIsResourceExhausted) {
  Harness h;
  h.engine->set_device_bytes(5000);
  const auto sink = h.Generate(RawPrompt(600, 1, 10));
  EXPECT_TRUE(absl::IsResourceExhausted(sink->status())) << sink->status();
  EXPECT_GT(sink->final().retry_after_ms, 0);
  EXPECT_TRUE(h.Generate(RawPrompt(100, 1, 10))->status().ok());
}

TEST(CoreMemoryTest, IdleWorkingSetsGiveWay) {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  options.memory_bytes = 20000;
  Harness h(options);
  for (int i = 0; i < 10; ++i) {
    const std::string id = "s" + std::to_string(i);
    h.NewSession(id, Letters(400, static_cast<uint32_t>(i)));
    ASSERT_TRUE(h.Chat(h.Turn(id, "hi"))->status().ok());
  }
  EXPECT_GT(h.Count(CoreCounter::kSequenceEvictions), 0u);
  EXPECT_LE(h.engine->peak_bytes(), options.memory_bytes);
  EXPECT_FALSE(h.core->GetSession("t", "s0", false)->in_memory);
  EXPECT_TRUE(h.core->GetSession("t", "s9", false)->in_memory);
  const SessionRecord before = h.Record("s0");
  const auto sink = h.Chat(h.Turn("s0", "again"));
  EXPECT_EQ(sink->text(), h.Greedy(h.PromptOf(before, "again")));
  EXPECT_GE(sink->final().reused.total(), 384u);
}

TEST(CoreMemoryTest, ContextThatCanNeverFitIsRefused) {
  Harness::Options options;
  options.memory_bytes = 10000;
  Harness h(options);
  const auto sink = h.Generate(RawPrompt(2000, 1, 1));
  // To try again does not help, so nothing says that it would.
  EXPECT_TRUE(absl::IsInvalidArgument(sink->status())) << sink->status();
  EXPECT_EQ(sink->final().retry_after_ms, 0);
  EXPECT_NE(sink->status().message().find("2000 tokens need 33500 bytes"),
            std::string::npos)
      << sink->status();
  EXPECT_TRUE(h.Generate(RawPrompt(200, 1, 1))->status().ok());
}

// The same turn would come no further: it ends there, and is kept.
TEST(CoreMemoryTest, AnAnswerThatMeetsTheMemoryCapEndsAndIsKept) {
  for (const bool on_device : {false, true}) {
    Harness::Options options;
    options.memory_bytes = on_device ? 100 << 20 : 10000;
    options.engine.end_one_in = 0;
    Harness h(options);
    if (on_device) h.engine->set_device_bytes(9000);
    h.NewSession("s");
    const std::vector<TokenId> prompt = h.PromptOf(h.Record("s"), "go on");
    const auto sink = h.Chat(h.Turn("s", "go on", 5000));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    const FinalInfo final = sink->final();
    EXPECT_EQ(final.finish_reason, FinishReason::kContext);
    EXPECT_EQ(final.turn, 1u);
    EXPECT_GT(final.generated_tokens, 400u);
    EXPECT_LT(final.generated_tokens, 640u);
    EXPECT_EQ(sink->text(),
              h.Greedy(prompt, static_cast<int>(final.generated_tokens)));
    EXPECT_EQ(h.Record("s").messages.back().content, sink->text());
    // Also where others run: they, and what was preempted, get on. Often, since
    // it depends on how many pages have come when they are rematerialized.
    for (uint32_t round = 0; round < 20; ++round) {
      std::vector<std::shared_ptr<CollectSink>> sinks;
      for (uint32_t i = 0; i < 4; ++i) {
        sinks.push_back(Start(h, RawPrompt(100, 4 * round + i, 5000)));
      }
      for (const auto& other : sinks) {
        other->Wait();
        EXPECT_TRUE(other->status().ok()) << other->status();
        EXPECT_EQ(other->final().finish_reason, FinishReason::kContext);
      }
    }
  }
}

TEST(CoreMemoryTest, AMemoryCapForNoConversationIsRefusedAtTheStart) {
  // 9 blocks, a sequence and a page, and what the store takes more of it; also
  // where not even the codec fits.
  for (const auto& [codec_bytes, cap_bytes, least_bytes] :
       {std::tuple<size_t, int64_t, int64_t>{0, 8000, 11938},
        {1000, 8000, 13169},
        {20000, 8000, 36553}}) {
    Harness::Options options;
    options.engine.codec_bytes = codec_bytes;
    Harness h(options);
    h.core.reset();
    const auto start = [&](int64_t bytes) {
      MemoryBudget memory(bytes);
      FakeStore store(memory);
      ServerCoreDeps deps;
      deps.engine = h.engine.get();
      deps.tokenizer = &h.tokenizer;
      deps.chat_template = &h.chat_template;
      deps.store = &store;
      deps.memory = &memory;
      return ServerCore::Create(deps, h.options.core, {}).status();
    };
    const absl::Status status = start(cap_bytes);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_NE(
        std::string(status.message())
            .find(absl::StrCat("expected at least ", least_bytes, " bytes")),
        std::string::npos)
        << status;
    EXPECT_TRUE(start(least_bytes).ok());
  }
}

}  // namespace
}  // namespace xcache::testing
