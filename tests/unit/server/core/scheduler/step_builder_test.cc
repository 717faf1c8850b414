#include "server/core/scheduler/step_builder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "tests/unit/server/core/scheduler/parts_fixture.h"

namespace xcache::testing {
namespace {

std::vector<size_t> Rows(const StepBuilder::Step& step) {
  std::vector<size_t> rows;
  for (const StepItem& item : step.items) rows.push_back(item.tokens.size());
  return rows;
}
using RowList = std::vector<size_t>;

// Runs it until it has sampled a token.
std::shared_ptr<ActiveRequest> Decoding(Parts& parts, uint32_t seed) {
  const auto request = parts.Raw(10, seed, 1000);
  parts.Admit(request);
  while (!request->decoding()) parts.Round();
  return request;
}

// Memory for their first rows, without a step.
void Prepare(Parts& parts) {
  parts.restorer.PlanAndRestore();
  for (const auto& request : parts.queue.running()) {
    if (request->live.sequence != nullptr) continue;
    request->live.sequence =
        parts.engine.NewSequence(*parts.codec, {}, {}, RematPolicy::kResume)
            .value();
    request->live.codec = parts.codec;
  }
}

TEST(StepBuilderTest, WhoDecodesComesFirstAndPromptsShareTheRest) {
  ServerCoreOptions options;
  options.step_rows = 100;
  Parts parts(options);
  const auto first = parts.Raw(1000, 1);
  parts.Admit(first);
  const auto second = parts.Raw(1000, 2);
  parts.Admit(second);
  const auto chat = Decoding(parts, 3);
  const int64_t in_block = second->live.num_rows() % 64;
  Prepare(parts);
  const StepBuilder::Step step = parts.steps.Build();
  ASSERT_EQ(step.items.size(), 3u);
  EXPECT_EQ(step.requests[0], chat);
  EXPECT_EQ(step.requests[1], first);
  EXPECT_EQ(step.requests[2], second);
  EXPECT_EQ(Rows(step), (RowList{1, 64,
                                 static_cast<size_t>(std::min<int64_t>(
                                     100 - 1 - 64, 64 - in_block))}));
}

TEST(StepBuilderTest, AnItemEndsAtItsBlocksEnd) {
  ServerCoreOptions options;
  options.step_rows = 1000;
  Parts parts(options);
  parts.Admit(parts.Raw(200, 1));
  parts.Admit(parts.Raw(30, 2));
  parts.Admit(parts.Raw(64, 3));
  Prepare(parts);
  const StepBuilder::Step step = parts.steps.Build();
  EXPECT_EQ(Rows(step), (RowList{64, 30, 64}));
  EXPECT_EQ(step.items[0].logits_mode, LogitsMode::kNone);
  EXPECT_EQ(step.items[1].logits_mode, LogitsMode::kLast);
  EXPECT_EQ(step.items[2].logits_mode, LogitsMode::kLast);
}

TEST(StepBuilderTest, TheBudgetHoldsAndTheOldestPromptGoesOn) {
  ServerCoreOptions options;
  options.step_rows = 80;
  Parts parts(options);
  for (uint32_t i = 0; i < 4; ++i) parts.Admit(parts.Raw(300, i));
  for (int round = 0; round < 8; ++round) {
    parts.Round();
    EXPECT_LE(parts.engine.max_step_rows(), 80);
  }
  // 64 and 16 a step: the first is through in 5 steps, nobody after it sooner.
  const auto& running = parts.queue.running();
  ASSERT_FALSE(running.empty());
  for (size_t i = 1; i < running.size(); ++i) {
    EXPECT_GE(running[i - 1]->live.num_rows(), running[i]->live.num_rows());
  }
}

TEST(StepBuilderTest, EachThatDecodesGetsItsRowInEveryStep) {
  ServerCoreOptions options;
  options.step_rows = 16;
  Parts parts(options);
  std::vector<std::shared_ptr<ActiveRequest>> chats;
  for (uint32_t i = 0; i < 10; ++i) chats.push_back(Decoding(parts, i));
  parts.Admit(parts.Raw(300, 99));
  std::vector<int64_t> before;
  for (const auto& chat : chats) before.push_back(chat->generated());
  for (int step = 0; step < 5; ++step) parts.Round();
  for (size_t i = 0; i < chats.size(); ++i) {
    EXPECT_EQ(chats[i]->generated(), before[i] + 5);
  }
}

// Options with which each step drafts all that it may, all of it wrong.
ServerCoreOptions Drafting(int step_rows) {
  ServerCoreOptions options;
  options.step_rows = step_rows;
  options.draft = [](std::span<const TokenId>, size_t most) {
    return std::vector<TokenId>(most, kBos);
  };
  return options;
}

TEST(StepBuilderTest, ADraftEndsBeforeItsBlockDoes) {
  Parts parts(Drafting(128));
  const auto chat = Decoding(parts, 1);
  chat->speculates = true;
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = chat->live.num_rows();
    parts.restorer.PlanAndRestore();
    const StepBuilder::Step step = parts.steps.Build();
    ASSERT_EQ(step.items.size(), 1u);
    EXPECT_EQ(static_cast<int64_t>(step.items[0].tokens.size()),
              std::clamp<int64_t>(63 - rows % 64, 1, 16));
    parts.Round();
    // One token, and no row of what was wrong.
    EXPECT_EQ(chat->live.num_rows(), rows + 1);
    EXPECT_EQ(chat->live.sequence->tokens().back(),
              chat->tokens[chat->tokens.size() - 2]);
  }
  EXPECT_EQ(chat->generated(), 201);
}

TEST(StepBuilderTest, DraftsHaveTheRowsThatNobodyElseWants) {
  Parts parts(Drafting(100));
  std::vector<std::shared_ptr<ActiveRequest>> chats;
  for (uint32_t i = 0; i < 4; ++i) {
    chats.push_back(Decoding(parts, i));
    chats.back()->speculates = i != 2;
  }
  parts.restorer.PlanAndRestore();
  EXPECT_EQ(Rows(parts.steps.Build()), (RowList{16, 16, 1, 16}));
  const auto prompt = parts.Raw(300, 9);
  parts.Admit(prompt);
  Prepare(parts);
  const StepBuilder::Step step = parts.steps.Build();
  EXPECT_EQ(Rows(step), (RowList{16, 16, 1, 3, 64}));
  ASSERT_EQ(step.parts.size(), 1u);
  EXPECT_EQ(step.parts[0].gets, 100);
  EXPECT_EQ(step.items[1].logits_mode, LogitsMode::kAll);
  EXPECT_EQ(step.items[2].logits_mode, LogitsMode::kLast);
}

TEST(StepBuilderTest, WhatIsDraftedRightIsTakenInOneStep) {
  ServerCoreOptions options;
  options.draft = [](std::span<const TokenId> context, size_t most) {
    return FakeGreedy({}, kCodec, {context.begin(), context.end()},
                      static_cast<int>(most), true);
  };
  Parts parts(options);
  const auto request = parts.Raw(100, 1, 150);
  request->speculates = true;
  const std::vector<TokenId> prompt = request->tokens;
  const auto sink = parts.Answer(request);
  std::string expected;
  for (const TokenId token : FakeGreedy({}, kCodec, prompt, 150, true)) {
    expected += parts.tokenizer.TokenBytes(token, false);
  }
  EXPECT_EQ(sink->text(), expected);
  const FinalInfo final = sink->final();
  EXPECT_EQ(final.generated_tokens, 150u);
  EXPECT_EQ(final.accepted_tokens, final.drafted_tokens);
  // Two of the prompt; then in each 16 tokens, or what the block leaves: 16, 11
  // and 1 to its end, 16, 16, 16, 15 and 1 in the next, and 16, 16, 16 and 9.
  EXPECT_EQ(parts.Count(CoreCounter::kSteps), 2u + 3 + 5 + 4);
  EXPECT_EQ(final.accepted_tokens, 149u - (3 + 5 + 4));
}

TEST(StepBuilderTest, ARequestThatRunsAloneAfterAFailureDraftsNothing) {
  Parts parts(Drafting(128));
  const auto chat = Decoding(parts, 1);
  chat->speculates = true;
  parts.engine.set_poison(kBos);  // what is drafted
  parts.Round();
  EXPECT_EQ(chat->state, RequestState::kReady);
  EXPECT_TRUE(chat->solo);
  parts.engine.set_poison(-1);
  const int64_t before = chat->generated();
  while (chat->generated() == before) parts.Round();
  EXPECT_EQ(chat->final.drafted_tokens, 0u);
}

TEST(StepBuilderTest, AFailedStepIsRunAgainOneByOneAndEndsWhoFailsAlone) {
  Parts parts;
  const auto good = parts.Raw(20, 1);
  const auto bad = parts.Raw(20, 2);
  bad->tokens[7] = kFirstWord;
  parts.engine.set_poison(kFirstWord);
  const auto good_sink = Parts::SinkOf(*good);
  const auto bad_sink = Parts::SinkOf(*bad);
  const std::vector<TokenId> prompt = good->tokens;
  parts.Admit(good);
  parts.Admit(bad);
  parts.Round();
  EXPECT_TRUE(good->solo);
  EXPECT_TRUE(bad->solo);
  parts.Finish(good);
  parts.Finish(bad);
  good_sink->Wait();
  bad_sink->Wait();
  EXPECT_TRUE(good_sink->status().ok());
  EXPECT_EQ(bad_sink->status().code(), absl::StatusCode::kInternal);
  std::string expected;
  for (const TokenId token : FakeGreedy({}, kCodec, prompt, 4, true)) {
    expected += parts.tokenizer.TokenBytes(token, false);
  }
  EXPECT_EQ(good_sink->text(), expected);
}

TEST(StepBuilderTest, ASealedBlockIsSharedAndGivenToTheStore) {
  Parts parts;
  const auto request = parts.Raw(130, 1);
  parts.Admit(request);
  while (request->live.holds.size() < 2) parts.Round();
  EXPECT_EQ(parts.store.pages().num_pages(), 2u);
  EXPECT_TRUE(request->live.holds[1].stored());
  EXPECT_TRUE(parts.working_sets.blocks().Contains(request->KeyOfBlock(1)));
  EXPECT_EQ(parts.working_sets.flights().MakerOf(request->KeyOfBlock(1)),
            nullptr);
  EXPECT_EQ(parts.Count(CoreCounter::kBlocksSealed), 2u);

  const auto uncached = parts.Raw(130, 2);
  uncached->options.no_cache = true;
  parts.Admit(uncached);
  while (uncached->live.holds.size() < 2) parts.Round();
  EXPECT_EQ(parts.store.pages().num_pages(), 2u);
  EXPECT_FALSE(parts.working_sets.blocks().Contains(uncached->KeyOfBlock(0)));
}

TEST(StepBuilderTest, AScoreNeedsLogitsFromItsFirstTokenOn) {
  Parts parts;
  const auto score =
      parts.New(RequestKind::kScore, RawPrompt(150, 1, 1).prompt);
  score->next_score = 100;
  const auto sink = Parts::SinkOf(*score);
  parts.Admit(score);
  Prepare(parts);
  EXPECT_EQ(parts.steps.Build().items[0].logits_mode, LogitsMode::kNone);
  parts.Finish(score);
  EXPECT_TRUE(sink->status().ok());
  EXPECT_EQ(sink->tokens().size(), 50u);  // tokens 100 to 149
}

TEST(StepBuilderTest, BesideAFloodTheOtherTenantHasItsRowInEveryStep) {
  Parts parts;
  std::vector<std::shared_ptr<ActiveRequest>> flood;
  for (uint32_t i = 0; i < 20; ++i) {
    const auto request = parts.Raw(10, i, 100'000);
    request->base.tenant = "flood";
    parts.Admit(request);
    flood.push_back(request);
  }
  for (int i = 0; i < 4; ++i) parts.Round();
  const auto good = Decoding(parts, 99);
  const int64_t before = good->generated();
  std::vector<int64_t> flood_before;
  for (const auto& request : flood)
    flood_before.push_back(request->generated());
  for (int i = 0; i < 100; ++i) parts.Round();
  EXPECT_EQ(good->generated(), before + 100);
  // Who had no row for longest has the next one: all get on alike, but for
  // what a step's measured time leaves room for.
  int64_t least = 1000, most = 0;
  for (size_t i = 0; i < flood.size(); ++i) {
    const int64_t n = flood[i]->generated() - flood_before[i];
    least = std::min(least, n);
    most = std::max(most, n);
  }
  EXPECT_GT(least, 0);
  EXPECT_LE(most - least, 25);
}

TEST(StepBuilderTest, TenantsShareAStepAndEachOnesOldestPromptGoesOn) {
  ServerCoreOptions options;
  options.step_rows = 64;
  Parts parts(options);
  for (uint32_t i = 0; i < 3; ++i) {
    const auto request = parts.Raw(1000, i);
    request->base.tenant = i < 2 ? "a" : "b";
    parts.Admit(request);
  }
  Prepare(parts);
  const StepBuilder::Step step = parts.steps.Build();
  ASSERT_EQ(step.items.size(), 2u);
  EXPECT_EQ(step.requests[0]->id, 1u);
  EXPECT_EQ(step.requests[1]->id, 3u);
  EXPECT_EQ(Rows(step), (RowList{32, 32}));
}

}  // namespace
}  // namespace xcache::testing
