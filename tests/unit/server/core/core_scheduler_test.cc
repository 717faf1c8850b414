// Continuous batching: who computes when, bounds, cancellation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using std::chrono::milliseconds;

TEST(CoreSchedulerTest, DecodingGoesOnWhileALongPromptIsPrefilled) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(1);
  options.core.step_rows = 64;
  options.core.max_running = 8;
  Harness h(options);
  const auto chat = Start(h, RawPrompt(10, 1, 60));
  chat->WaitForDelta();
  const auto prompt = Start(h, RawPrompt(3000, 2, 1));
  prompt->Wait();
  chat->Wait();
  EXPECT_TRUE(prompt->status().ok());
  EXPECT_GT(h.engine->mixed_steps(), 20);
  EXPECT_LE(h.engine->max_step_rows(), 64);
}

TEST(CoreSchedulerTest, ManySequencesDecodeInOneStep) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(1);
  Harness h(options);
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (uint32_t i = 0; i < 20; ++i) {
    sinks.push_back(Start(h, RawPrompt(30, i, 40)));
  }
  for (const auto& sink : sinks) {
    sink->Wait();
    EXPECT_TRUE(sink->status().ok());
  }
  // 20 * 40 tokens one after the other would be 800 steps.
  EXPECT_LT(h.engine->steps(), 200);
}

TEST(CoreSchedulerTest, FullQueueRefusesWithAHint) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(5);
  options.core.max_running = 1;
  options.core.max_queue_requests = 2;
  Harness h(options);
  std::vector<std::shared_ptr<CollectSink>> sinks;
  sinks.push_back(Start(h, RawPrompt(10, 1, 20)));
  sinks.back()->WaitForDelta();
  for (uint32_t i = 0; i < 2; ++i) {
    sinks.push_back(Start(h, RawPrompt(10, i, 2)));
  }
  EXPECT_EQ(h.core->Snapshot().waiting, 2u);
  EXPECT_EQ(h.core->Snapshot().waiting_tokens, 20u);
  const auto refused = Start(h, RawPrompt(10, 9, 2));
  ASSERT_TRUE(refused->finished());
  EXPECT_TRUE(absl::IsResourceExhausted(refused->status()));
  EXPECT_GT(refused->final().retry_after_ms, 0);
  EXPECT_EQ(h.Count(CoreCounter::kQueueRejections), 1u);
  for (const auto& sink : sinks) {
    sink->Wait();
    EXPECT_TRUE(sink->status().ok());
  }
  EXPECT_GT(sinks.back()->final().timings.queue_us, 5000);
}

TEST(CoreSchedulerTest, TheHintIsHowLongTheQueueTakes) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  options.core.max_running = 4;
  options.core.max_queue_requests = 4;
  Harness h(options);
  std::vector<std::shared_ptr<CollectSink>> sinks;
  // Four that run for long, after four that were short.
  for (uint32_t i = 0; i < 4; ++i) h.Generate(RawPrompt(10, i, 1));
  for (uint32_t i = 0; i < 4; ++i) {
    sinks.push_back(Start(h, RawPrompt(10, i, 600)));
    sinks.back()->WaitForDelta();
  }
  for (uint32_t i = 0; i < 4; ++i)
    sinks.push_back(Start(h, RawPrompt(10, i, 1)));
  std::this_thread::sleep_for(milliseconds(200));
  // As long as the first one waits already.
  const auto refused = Start(h, RawPrompt(10, 9, 1));
  ASSERT_TRUE(absl::IsResourceExhausted(refused->status()));
  EXPECT_GE(refused->final().retry_after_ms, 150);
  for (const auto& sink : sinks) sink->Wait();
  // And then as long as it was: 600 steps, less what was gone by.
  for (uint32_t i = 0; i < 4; ++i) {
    sinks.push_back(Start(h, RawPrompt(10, i, 600)));
    sinks.back()->WaitForDelta();
  }
  for (uint32_t i = 0; i < 4; ++i)
    sinks.push_back(Start(h, RawPrompt(10, i, 1)));
  EXPECT_GE(Start(h, RawPrompt(10, 9, 1))->final().retry_after_ms, 100);
}

TEST(CoreSchedulerTest, QueueIsBoundedInTokens) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(5);
  options.core.max_running = 1;
  options.core.max_queue_tokens = 1000;
  Harness h(options);
  const auto running = Start(h, RawPrompt(10, 1, 20));
  running->WaitForDelta();
  const auto waiting = Start(h, RawPrompt(700, 2, 1));
  const auto refused = Start(h, RawPrompt(400, 3, 1));
  EXPECT_TRUE(absl::IsResourceExhausted(refused->status()));
  const auto fits = Start(h, RawPrompt(200, 3, 1));
  fits->Wait();
  EXPECT_TRUE(fits->status().ok());
  waiting->Wait();
  EXPECT_TRUE(waiting->status().ok());
}

TEST(CoreSchedulerTest, WaitingRequestsCanBeCancelledAndExpire) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(5);
  options.core.max_running = 1;
  Harness h(options);
  const auto running = Start(h, RawPrompt(10, 1, 40));
  running->WaitForDelta();
  GenerateRequest request = RawPrompt(10, 2, 1);
  request.cancellation = std::make_shared<Cancellation>();
  const auto cancelled = Start(h, request);
  GenerateRequest late = RawPrompt(10, 3, 1);
  late.deadline = std::chrono::steady_clock::now() + milliseconds(20);
  const auto expired = Start(h, late);
  request.cancellation->Cancel();
  cancelled->Wait();
  expired->Wait();
  EXPECT_TRUE(absl::IsCancelled(cancelled->status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(expired->status()));
  EXPECT_FALSE(running->finished());
  running->Wait();
  EXPECT_EQ(h.core->Snapshot().waiting, 0u);
  EXPECT_EQ(h.core->Snapshot().waiting_tokens, 0u);
}

TEST(CoreSchedulerTest, CancelBeforeSubmitEndsItAtOnce) {
  Harness h;
  GenerateRequest request = RawPrompt(10, 2, 100);
  request.cancellation = std::make_shared<Cancellation>();
  request.cancellation->Cancel();
  EXPECT_TRUE(absl::IsCancelled(h.Generate(request)->status()));
}

TEST(CoreSchedulerTest, CancellationWhilePagesAreReadFreesEverything) {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  Harness h(options);
  ASSERT_TRUE(h.Generate(RawPrompt(2000, 1, 1))->status().ok());
  h.Restart();
  h.store.pages().set_load_delay(milliseconds(5));
  GenerateRequest request = RawPrompt(2000, 1, 1);
  request.cancellation = std::make_shared<Cancellation>();
  const auto sink = Start(h, request);
  std::this_thread::sleep_for(milliseconds(20));
  request.cancellation->Cancel();
  sink->Wait();
  EXPECT_TRUE(absl::IsCancelled(sink->status()));
  h.store.pages().set_load_delay(milliseconds(0));
  const auto again = h.Generate(RawPrompt(2000, 1, 1));
  EXPECT_EQ(again->final().reused.total(), 1999 / 64 * 64u);
}

// Beside the steps of a chat, pages of one that comes back are on their way.
TEST(CoreSchedulerTest, NextPagesAreStagedBeforeAStep) {
  Harness::Options options;
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  options.engine.step_delay = milliseconds(1);
  Harness h(options);
  const auto before = h.Generate(RawPrompt(2000, 1, 4));
  ASSERT_TRUE(before->status().ok());
  h.Restart();
  h.engine->set_max_remat_jobs(2);
  const auto chat = Start(h, RawPrompt(10, 2, 200));
  chat->WaitForDelta();
  const auto back = Start(h, RawPrompt(2000, 1, 4));
  back->Wait();
  EXPECT_EQ(back->text(), before->text());
  EXPECT_EQ(back->final().reused.total(), 1999 / 64 * 64u);
  // Most come by themselves while the chat's step runs.
  EXPECT_GT(h.engine->staged(), 8);
  EXPECT_EQ(h.engine->staged_remats(), h.engine->staged());
  chat->Wait();
}

TEST(CoreSchedulerTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  Harness h(options);
  const auto running = Start(h, RawPrompt(10, 1, 20));
  running->WaitForDelta();
  EXPECT_EQ(h.core->Drain(std::chrono::steady_clock::now() +
                          std::chrono::seconds(60)),
            0);
  EXPECT_TRUE(running->finished());
  EXPECT_TRUE(running->status().ok());
  EXPECT_TRUE(absl::IsUnavailable(h.Generate(RawPrompt(10, 1, 1))->status()));
}

TEST(CoreSchedulerTest, DrainEndsTheRestAtItsDeadline) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  const auto running = Start(h, RawPrompt(10, 1, 8000));
  ChatTurn turn = h.Turn("s", "go", 8000);
  turn.options.ignore_eos = true;
  const auto chat = h.StartChat(turn);
  running->WaitForDelta();
  EXPECT_EQ(h.core->Drain(std::chrono::steady_clock::now() + milliseconds(20)),
            2);
  EXPECT_TRUE(absl::IsUnavailable(running->status()));
  EXPECT_TRUE(absl::IsUnavailable(chat->status()));
  EXPECT_EQ(h.Record("s").turn, 0u);
}

TEST(CoreSchedulerTest, EndOfTheCoreEndsItsRequests) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  Harness h(options);
  const auto running = Start(h, RawPrompt(10, 1, 8000));
  running->WaitForDelta();
  h.core.reset();
  EXPECT_TRUE(absl::IsUnavailable(running->status()));
}

TEST(CoreSchedulerTest, FailingSequenceFailsAlone) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(1);
  Harness h(options);
  h.engine->set_poison('!');
  GenerateRequest bad = RawPrompt(300, 1, 5);
  bad.prompt[150] = '!';
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (uint32_t i = 0; i < 6; ++i) {
    sinks.push_back(Start(h, RawPrompt(300, 10 + i, 30)));
  }
  const auto failed = Start(h, bad);
  failed->Wait();
  EXPECT_EQ(failed->status().code(), absl::StatusCode::kInternal);
  for (const auto& sink : sinks) {
    sink->Wait();
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->final().generated_tokens, 30u);
  }
}

TEST(CoreSchedulerTest, SeedIsReturnedAndRepeatsTheAnswer) {
  Harness h;
  GenerateRequest request = RawPrompt(50, 1, 30);
  request.options.sampling.temperature = 2.0f;
  std::set<std::string> texts;
  std::set<uint64_t> seeds;
  for (int i = 0; i < 4; ++i) {
    const auto sink = h.Generate(request);
    texts.insert(sink->text());
    seeds.insert(sink->final().seed);
    GenerateRequest again = request;
    again.options.seed = sink->final().seed;
    const auto repeated = h.Generate(again);
    EXPECT_EQ(repeated->text(), sink->text());
    EXPECT_EQ(repeated->final().seed, sink->final().seed);
  }
  EXPECT_EQ(seeds.size(), 4u);
  EXPECT_GT(texts.size(), 1u);
}

TEST(CoreSchedulerTest, LogprobsCoverEveryToken) {
  Harness h;
  GenerateRequest request = RawPrompt(50, 1, 30);
  request.options.num_logprobs = 4;
  const auto sink = h.Generate(request);
  const auto tokens = sink->tokens();
  ASSERT_EQ(tokens.size(), 30u);
  std::string text;
  for (const SampledToken& token : tokens) {
    text += h.tokenizer.TokenBytes(token.token, false);
    ASSERT_EQ(token.top.size(), 3u);
    EXPECT_EQ(token.top[0].token, token.token);  // greedy
    EXPECT_LT(token.logprob, 0);
  }
  EXPECT_EQ(sink->text(), text);
}

TEST(CoreSchedulerTest, TimesAreReported) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  Harness h(options);
  const auto sink = h.Generate(RawPrompt(640, 1, 10));
  const Timings t = sink->final().timings;
  EXPECT_GE(t.prefill_us, 10 * 2000);
  EXPECT_GE(t.decode_us, 9 * 2000);
  EXPECT_GE(t.ttft_us, t.prefill_us);
  EXPECT_GE(t.total_us, t.ttft_us + t.decode_us - 1000);
  EXPECT_EQ(h.metrics->observations(CoreHistogram::kTtft), 1u);
  EXPECT_EQ(h.metrics->observations(CoreHistogram::kInterToken), 9u);
  EXPECT_GT(h.core->Snapshot().prefill_tokens_per_second, 0);
  EXPECT_GT(h.core->Snapshot().decode_tokens_per_second, 0);
}

}  // namespace
}  // namespace xcache::testing
