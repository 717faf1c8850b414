// Embeddings: every token's row, once, however the text is cut into steps and
// whoever it shares them with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using ::testing::HasSubstr;

EmbedRequest Text(size_t n, uint32_t seed, Pooling pooling = Pooling::kMean) {
  EmbedRequest request;
  request.tenant = "t";
  for (const char c : Letters(n, seed)) request.tokens.push_back(c);
  request.pooling = pooling;
  return request;
}

// Of rows of the token, its position and 1.
std::vector<float> Expected(const EmbedRequest& request) {
  const auto n = static_cast<double>(request.tokens.size());
  if (request.pooling == Pooling::kLast) {
    return {static_cast<float>(request.tokens.back()),
            static_cast<float>(n - 1), 1.0f};
  }
  const double sum =
      std::accumulate(request.tokens.begin(), request.tokens.end(), 0.0);
  return {static_cast<float>(sum / n), static_cast<float>((n - 1) / 2), 1.0f};
}

TEST(CoreEmbedTest, EveryRowOnceAtAnyLengthAndStep) {
  Harness::Options options;
  options.core.max_running = 1;
  options.core.step_rows = 48;
  Harness h(options);
  for (const size_t n :
       {1u, 2u, 47u, 48u, 49u, 63u, 64u, 65u, 128u, 129u, 300u}) {
    for (const Pooling pooling : {Pooling::kMean, Pooling::kLast}) {
      const EmbedRequest request = Text(n, 3, pooling);
      const auto sink = h.StartEmbed(request);
      sink->Wait();
      ASSERT_TRUE(sink->status().ok()) << sink->status();
      EXPECT_EQ(sink->final().embedding, Expected(request)) << n;
      EXPECT_EQ(sink->final().prompt_tokens, n);
      EXPECT_EQ(sink->final().prefilled_tokens, n);
      EXPECT_EQ(sink->final().generated_tokens, 0u);
    }
  }
}

TEST(CoreEmbedTest, KnowsNoPageAndKeepsNone) {
  Harness h;
  ChatTurn turn = h.Turn("", Letters(300, 3));
  ASSERT_TRUE(h.Chat(turn)->status().ok());
  const int64_t puts = h.store.pages().puts();
  for (int i = 0; i < 2; ++i) {
    const auto sink = h.StartEmbed(Text(300, 3));
    sink->Wait();
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->final().reused.total(), 0u);
  }
  EXPECT_EQ(h.store.pages().puts(), puts);
  EXPECT_EQ(h.core->Snapshot().waiting, 0u);
}

TEST(CoreEmbedTest, ManyAtOnceBesideAChatAndWithLittleMemory) {
  Harness::Options options;
  // Room for a few of them: others are put back, and compute rows again.
  options.memory_bytes = 1800 << 10;
  options.engine.kv_block_bytes = 100 << 10;
  options.engine.step_delay = std::chrono::microseconds(100);
  Harness h(options);
  const auto chat = h.StartChat(h.Turn("", Letters(200, 9), 60));
  std::vector<EmbedRequest> requests;
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (uint32_t i = 0; i < 24; ++i) {
    requests.push_back(
        Text(100 + 30 * i, i, i % 3 == 0 ? Pooling::kLast : Pooling::kMean));
    sinks.push_back(h.StartEmbed(requests.back()));
  }
  for (size_t i = 0; i < sinks.size(); ++i) {
    sinks[i]->Wait();
    ASSERT_TRUE(sinks[i]->status().ok()) << sinks[i]->status();
    EXPECT_EQ(sinks[i]->final().embedding, Expected(requests[i])) << i;
  }
  chat->Wait();
  EXPECT_TRUE(chat->status().ok());
  EXPECT_LE(h.memory.peak_bytes(), options.memory_bytes);
  EXPECT_GT(h.Count(CoreCounter::kPreemptions), 0u);
}

TEST(CoreEmbedTest, AStepThatFailedIsMadeAnew) {
  Harness h;
  h.engine->set_poison('!');
  EmbedRequest bad = Text(200, 1);
  bad.tokens[150] = '!';
  const EmbedRequest good = Text(200, 2);
  const auto first = h.StartEmbed(bad);
  const auto second = h.StartEmbed(good);
  first->Wait();
  second->Wait();
  EXPECT_TRUE(absl::IsInternal(first->status()));
  ASSERT_TRUE(second->status().ok());
  EXPECT_EQ(second->final().embedding, Expected(good));
}

TEST(CoreEmbedTest, WhatIsWrongIsSaid) {
  Harness::Options options;
  options.core.max_context = 512;
  Harness h(options);
  const auto status_of = [&](EmbedRequest request) {
    const auto sink = h.StartEmbed(std::move(request));
    sink->Wait();
    return sink->status();
  };
  EXPECT_TRUE(status_of(Text(512, 1)).ok());
  const absl::Status long_one = status_of(Text(513, 1));
  EXPECT_TRUE(absl::IsInvalidArgument(long_one));
  EXPECT_THAT(std::string(long_one.message()), HasSubstr("513"));
  EXPECT_TRUE(absl::IsInvalidArgument(status_of(Text(0, 1))));
  EmbedRequest other = Text(3, 1);
  other.tokens[1] = kVocab;
  EXPECT_TRUE(absl::IsInvalidArgument(status_of(other)));
  other.tokens[1] = 5;
  other.cancellation = std::make_shared<Cancellation>();
  other.cancellation->Cancel();
  EXPECT_TRUE(absl::IsCancelled(status_of(other)));
}

}  // namespace
}  // namespace xcache::testing
