#include "tests/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "engine/engine_factory.h"
#include "engine/model/tokenizer.h"
#include "engine/xcache/codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/eval/eval_report.h"
#include "tests/eval/eval_tasks.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/engine/made_up_profiles.h"

namespace xcache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

TEST(SplitSpecsTest, TellsOptionsFromCodecs) {
  EXPECT_THAT(SplitSpecs(""), IsEmpty());
  EXPECT_THAT(SplitSpecs("kv-fp16"), ElementsAre("kv-fp16"));
  EXPECT_THAT(SplitSpecs("kv-fp16,xquant:bits=4,group=32,xquant-gqa,x:bits=2"),
              ElementsAre("kv-fp16", "xquant:bits=4,group=32", "xquant-gqa",
                          "x:bits=2"));
  EXPECT_THAT(SplitSpecs("x:bits=2,group=32;y;z,w"),
              ElementsAre("x:bits=2,group=32", "y", "z", "w"));
  // After a ';' nothing belongs to the spec before it: a mistake shows.
  EXPECT_THAT(SplitSpecs("x:bits=2;group=32"),
              ElementsAre("x:bits=2", "group=32"));
}

TEST(ReferencePositionTest, AddsNllAndDivergence) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), logits shifted at will.
  const float ln2 = std::log(2.0f);
  const std::vector<float> p = {ln2 + 3, 3, 3}, q = {-7, ln2 - 7, -7};
  Evaluation e;
  const ReferencePosition reference(p);
  reference.Add(q, 0, &e);
  EXPECT_EQ(e.tokens, 1);
  EXPECT_NEAR(e.nll(), std::log(4.0), 1e-6);
  EXPECT_NEAR(e.delta_nll(), std::log(2.0), 1e-6);
  EXPECT_NEAR(e.kl(), 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(e.top1_agreement(), 0.0);
  reference.Add(p, 1, &e);
  EXPECT_NEAR(e.sum_kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(e.top1_agreement(), 0.5);
}

class EvaluateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    EngineOptions options;
    options.num_threads = 2;
    const auto model = testing::MakeTinyModel({});
    options.profile_dir = testing::MadeUpProfiles(*model);
    auto engine = CreateEngine(model, options, nullptr);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    for (TokenId i = 0; i < 150; ++i) window_.push_back(3 + (i * 37) % 250);
  }

  std::unique_ptr<Engine> engine_;
  std::vector<TokenId> window_;
};

TEST_F(EvaluateTest, MeasuresPagesAndDistance) {
  const auto found =
      Evaluate(*engine_, {"kv-fp16", "xquant-gqa:bits=2", "xquant:bits=8"},
               {window_, window_}, {});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 3u);
  for (const Evaluation& e : *found) {
    EXPECT_EQ(e.tokens, 2 * 149);
    EXPECT_EQ(e.page_tokens, 2 * 2 * 64);
    EXPECT_EQ(e.kv_fp16_bytes_per_token, 2 * 2 * 2 * 32);
  }
  const Evaluation &lossless = (*found)[0], &two = (*found)[1],
                   &eight = (*found)[2];
  EXPECT_EQ(lossless.codec, "kv-fp16");
  EXPECT_EQ(lossless.kl(), 0.0);
  EXPECT_EQ(lossless.delta_nll(), 0.0);
  EXPECT_EQ(lossless.top1_agreement(), 1.0);
  EXPECT_EQ(lossless.page_bytes_per_token(), 256 + 324 / 64.0);
  EXPECT_GT(two.kl(), eight.kl());
  EXPECT_GT(eight.kl(), 0.0);
  EXPECT_LT(two.page_bytes, lossless.page_bytes);
}

// The sums, which a single other bit would change.
void ExpectSameFigures(const std::vector<Evaluation>& a,
                       const std::vector<Evaluation>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].codec, b[i].codec);
    EXPECT_EQ(a[i].tokens, b[i].tokens) << a[i].codec;
    EXPECT_EQ(a[i].sum_nll, b[i].sum_nll) << a[i].codec;
    EXPECT_EQ(a[i].sum_baseline_nll, b[i].sum_baseline_nll) << a[i].codec;
    EXPECT_EQ(a[i].sum_kl, b[i].sum_kl) << a[i].codec;
    EXPECT_EQ(a[i].same_top1, b[i].same_top1) << a[i].codec;
    EXPECT_EQ(a[i].page_bytes, b[i].page_bytes) << a[i].codec;
    EXPECT_EQ(a[i].page_tokens, b[i].page_tokens) << a[i].codec;
  }
}

TEST_F(EvaluateTest, TurnsWithResumesGiveTheSameFigures) {
  // A window that turns cut in the midst of blocks, at the end of one, and
  // within the first.
  for (TokenId i = 0; i < 106; ++i) window_.push_back(3 + (i * 101) % 250);
  const std::vector<std::string> specs = CodecNames();
  const auto whole = Evaluate(*engine_, specs, {window_}, {});
  ASSERT_TRUE(whole.ok()) << whole.status();
  for (int turns : {2, 3, 4, 7, 256}) {
    const auto found =
        Evaluate(*engine_, specs, {window_}, {.turns = turns, .threads = 2});
    ASSERT_TRUE(found.ok()) << found.status();
    ExpectSameFigures(*whole, *found);
  }
}

TEST_F(EvaluateTest, CodecsMeasuredOneByOneGiveTheSameFigures) {
  const std::vector<std::string> specs = {"xquant-gqa:bits=2", "kv-fp16",
                                          "xquant:bits=3"};
  const auto together = Evaluate(*engine_, specs, {window_, window_}, {});
  const auto alone =
      Evaluate(*engine_, specs, {window_, window_}, {.memory_bytes = 0});
  ASSERT_TRUE(together.ok() && alone.ok()) << alone.status();
  ExpectSameFigures(*together, *alone);
}

TEST_F(EvaluateTest, ProgressGrowsToOne) {
  double last = 0.0;
  const auto found = Evaluate(
      *engine_, {"kv-fp16", "xquant:bits=4"}, {window_, window_},
      {.memory_bytes = 0, .progress = [&](std::string_view what, double at) {
         if (what != "evaluate") return;
         EXPECT_GT(at, last);
         last = at;
       }});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(last, 1.0);
}

TEST_F(EvaluateTest, WhatKvFp16WritesIsAnsweredWholeByIt) {
  window_.resize(100);
  auto task = ContinueGreedily(*engine_, {window_, {5}}, 40, nullptr);
  ASSERT_TRUE(task.ok()) << task.status();
  ASSERT_EQ(task->windows[0].size(), 140u);
  ASSERT_EQ(task->answers[1].size(), 1u);
  EXPECT_EQ(task->answers[1][0].end, 41u);
  // One token that it would not have written, in the midst of the second.
  TokenId& other = task->windows[1][11];
  other = other == 7 ? 8 : 7;
  task->answers[1] = {{1, 11}, {11, 21}, {1, 21}};
  const auto found = Evaluate(*engine_, {"kv-fp16", "xquant:bits=2"},
                              task->windows, {.answers = task->answers});
  ASSERT_TRUE(found.ok()) << found.status();
  const Evaluation& lossless = (*found)[0];
  EXPECT_EQ(lossless.answers, 4);
  EXPECT_EQ(lossless.whole_answers, 2);
  EXPECT_EQ(lossless.sum_prefix_share, 1.0 + 1.0 + 0.0 + 0.5);
  EXPECT_EQ(lossless.tokens, 40 + 20);
  EXPECT_EQ(lossless.kl(), 0.0);
  EXPECT_GT((*found)[1].kl(), 0.0);
  EXPECT_FALSE(Evaluate(*engine_, {"kv-fp16"}, {window_, window_},
                        {.answers = {{{1, 2}}}})
                   .ok());
}

TEST_F(EvaluateTest, FactsAreToldEarlyAndAskedForAtTheEnd) {
  const auto tokenizer = Tokenizer::Create(testing::MakeTinyModel({})->gguf());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<TokenId> text(1200, 9);
  const auto task = AskForFacts(**tokenizer, {text, text, text}, 1);
  ASSERT_TRUE(task.ok()) << task.status();
  for (size_t w = 0; w < 3; ++w) {
    const std::vector<TokenId>& window = task->windows[w];
    EXPECT_EQ(window.size(), text.size());
    ASSERT_EQ(task->answers[w].size(), kFacts);
    for (const Answer& answer : task->answers[w]) {
      const std::span<const TokenId> asked =
          std::span(window).subspan(answer.begin, answer.end - answer.begin);
      const auto first = std::search(window.begin(), window.end(),
                                     asked.begin(), asked.end());
      EXPECT_LT(first - window.begin(), 700);
    }
    EXPECT_EQ(task->answers[w].back().end, window.size());
  }
  EXPECT_NE(task->windows[0], task->windows[1]);
  EXPECT_FALSE(AskForFacts(**tokenizer, {{1, 2, 3}}, 1).ok());
  const auto line =
      nlohmann::json::parse(TaskJsonLines("x", {{{4, 5, 6}}, {{{1, 3}}}}));
  EXPECT_EQ(line["tokens"][2], 6);
  EXPECT_EQ(line["answers"][0][1], 3);
}

TEST_F(EvaluateTest, NoTurnsIsInvalidArgument) {
  const auto found = Evaluate(*engine_, {"kv-fp16"}, {window_}, {.turns = 0});
  EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(EvalReportTest, JsonCsvAndTableSayTheSame) {
  Evaluation e;
  e.codec = "x:bits=2,group=64";
  e.tokens = 2;
  e.sum_nll = 2 * std::log(8.0);
  e.sum_baseline_nll = 2 * std::log(4.0);
  e.same_top1 = 1;
  e.page_bytes = 1280;
  e.page_tokens = 64;
  e.kv_fp16_bytes_per_token = 60;
  EvalSetup setup{"tiny", "a \"text\"", 3, 1, 2, 30};
  const auto json = nlohmann::json::parse(EvalJsonLines(setup, {e}));
  EXPECT_NEAR(json["ppl"], 8.0, 1e-12);
  EXPECT_NEAR(json["kv_fp16_ppl"], 4.0, 1e-12);
  EXPECT_NEAR(json["ppl_change_percent"], 100.0, 1e-9);
  EXPECT_EQ(json["top1_agreement"], 0.5);
  EXPECT_EQ(json["ratio"], 3.0);
  EXPECT_EQ(json["original_ratio"], 1.5);
  EXPECT_EQ(json["turns"], 2);
  const std::string head = EvalCsvHead(), row = EvalCsvRows(setup, {e});
  EXPECT_THAT(head, StartsWith("codec,tokens,ppl,"));
  EXPECT_THAT(row, StartsWith("\"x:bits=2,group=64\",2,"));
  EXPECT_THAT(row, HasSubstr(",\"a \"\"text\"\"\",3,1,2,1.5,,,\n"));
  // The spec's comma is quoted; all others part columns.
  EXPECT_EQ(std::ranges::count(row, ',') - 1, std::ranges::count(head, ','));
  const std::string table = EvalTable(setup, {e});
  EXPECT_THAT(table, HasSubstr("kv-fp16: perplexity 4.000"));
  EXPECT_THAT(table, HasSubstr("each in 2 turns"));
  EXPECT_THAT(table, HasSubstr("+100.000 %"));
  setup.original_kv_bytes_per_token = 0;
  EXPECT_TRUE(nlohmann::json::parse(EvalJsonLines(setup, {e}))["original_ratio"]
                  .is_null());
}

TEST_F(EvaluateTest, AnUnknownCodecIsInvalidArgument) {
  const auto found = Evaluate(*engine_, {"zip"}, {window_}, {});
  EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EvaluateTest, AWindowWithoutAPageStillHasABytesFigure) {
  window_.resize(20);
  const auto found = Evaluate(*engine_, {"kv-fp16"}, {window_}, {});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)[0].tokens, 19);
  EXPECT_EQ((*found)[0].page_bytes_per_token(), 256 + 324 / 64.0);
}

}  // namespace
}  // namespace xcache
