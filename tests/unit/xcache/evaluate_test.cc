#include "tests/eval/evaluate.h"

#include <cmath>
#include <vector>

#include "engine/engine_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SplitSpecsTest, TellsOptionsFromCodecs) {
  EXPECT_THAT(SplitSpecs(""), IsEmpty());
  EXPECT_THAT(SplitSpecs("kv-fp16"), ElementsAre("kv-fp16"));
  EXPECT_THAT(SplitSpecs("kv-fp16,xquant:bits=4,group=32,xquant-gqa,x:bits=2"),
              ElementsAre("kv-fp16", "xquant:bits=4,group=32", "xquant-gqa",
                          "x:bits=2"));
}

TEST(AddPositionTest, IsNllAndDivergence) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), logits shifted at will.
  const float ln2 = std::log(2.0f);
  const std::vector<float> p = {ln2 + 3, 3, 3}, q = {-7, ln2 - 7, -7};
  Evaluation e;
  AddPosition(p, q, 0, &e);
  EXPECT_EQ(e.tokens, 1);
  EXPECT_NEAR(e.nll(), std::log(4.0), 1e-6);
  EXPECT_NEAR(e.delta_nll(), std::log(2.0), 1e-6);
  EXPECT_NEAR(e.kl(), 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(e.top1_agreement(), 0.0);
  AddPosition(p, p, 1, &e);
  EXPECT_NEAR(e.sum_kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(e.top1_agreement(), 0.5);
}

class EvaluateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    EngineOptions options;
    options.num_threads = 2;
    auto engine = CreateEngine(testing::MakeTinyModel({}), options, nullptr);
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
               {window_, window_}, nullptr);
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

TEST_F(EvaluateTest, AnUnknownCodecIsInvalidArgument) {
  const auto found = Evaluate(*engine_, {"zip"}, {window_}, nullptr);
  EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EvaluateTest, AWindowWithoutAPageStillHasABytesFigure) {
  window_.resize(20);
  const auto found = Evaluate(*engine_, {"kv-fp16"}, {window_}, nullptr);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)[0].tokens, 19);
  EXPECT_EQ((*found)[0].page_bytes_per_token(), 256 + 324 / 64.0);
}

}  // namespace
}  // namespace xcache
