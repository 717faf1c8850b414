// Rule R9: sampling is a pure function, its generator is the published one,
// and each filter keeps exactly the tokens that it should.
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/philox.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using Words4 = std::array<uint32_t, 4>;

// Random123 1.14, tests/kat_vectors, philox4x32-10.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       {0xa4093822, 0x299f31d0}),
            (Words4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformIsInTheUnitIntervalAndUsesAllOfSeedAndCounter) {
  std::set<double> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 32, ~0ull}) {
    for (uint64_t counter : {0ull, 1ull, 1ull << 32, ~0ull}) {
      const double u = PhiloxUniform(seed, counter);
      EXPECT_GE(u, 0.0);
      EXPECT_LT(u, 1.0);
      seen.insert(u);
    }
  }
  EXPECT_EQ(seen.size(), 16u);
}

std::vector<float> RandomLogits(size_t n, uint32_t seed, float spread) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(gen);
  return logits;
}

// The tokens that come out over many positions, with their counts.
std::map<TokenId, int> DrawMany(std::span<const float> logits,
                                SamplingParams params, int draws) {
  std::map<TokenId, int> counts;
  for (int i = 0; i < draws; ++i) {
    ++counts[SampleToken(logits, {}, params, i, 0).token];
  }
  return counts;
}

std::set<TokenId> Keys(const std::map<TokenId, int>& counts) {
  std::set<TokenId> keys;
  for (const auto& [token, count] : counts) keys.insert(token);
  return keys;
}

std::vector<double> Softmax(std::span<const float> logits, double temperature) {
  double max = -1e300;
  for (float x : logits) max = std::max(max, static_cast<double>(x));
  std::vector<double> p;
  double sum = 0;
  for (float x : logits) {
    p.push_back(std::exp((static_cast<double>(x) - max) / temperature));
    sum += p.back();
  }
  for (double& x : p) x /= sum;
  return p;
}

TEST(SamplerTest, GreedyTakesTheMaximumAndTiesGoToTheLowerId) {
  const std::vector<float> logits = {1, 3, 2, 3, 0};
  SampledToken s = SampleToken(logits, {}, {}, 0, 0);
  EXPECT_EQ(s.token, 1);
  EXPECT_NEAR(s.logprob, std::log(Softmax(logits, 1.0)[1]), 1e-6);
  EXPECT_TRUE(s.top.empty());
}

TEST(SamplerTest, IsAPureFunctionOfItsArguments) {
  const std::vector<float> logits = RandomLogits(5000, 1, 2.0f);
  const std::vector<TokenId> history = {1, 2, 3, 2};
  SamplingParams params;
  params.temperature = 0.9f;
  params.top_k = 40;
  params.top_p = 0.95f;
  params.repetition_penalty = 1.1f;
  params.seed = 77;
  std::set<TokenId> seen;
  for (int64_t position = 0; position < 50; ++position) {
    const SampledToken a = SampleToken(logits, history, params, position, 5);
    const SampledToken b = SampleToken(logits, history, params, position, 5);
    EXPECT_EQ(a.token, b.token);
    EXPECT_EQ(a.logprob, b.logprob);
    seen.insert(a.token);
  }
  EXPECT_GT(seen.size(), 5u) << "the position must matter";
  SamplingParams other = params;
  other.seed = 78;
  int differ = 0;
  for (int64_t position = 0; position < 50; ++position) {
    differ += SampleToken(logits, history, params, position, 0).token !=
              SampleToken(logits, history, other, position, 0).token;
  }
  EXPECT_GT(differ, 10) << "the seed must matter";
}

// Pearson's chi-square against the softmax.
double ChiSquare(const std::map<TokenId, int>& counts,
                 const std::vector<double>& p, int draws) {
  double chi2 = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const auto it = counts.find(static_cast<TokenId>(i));
    const double observed = it == counts.end() ? 0 : it->second;
    const double expected = p[i] * draws;
    chi2 += (observed - expected) * (observed - expected) / expected;
  }
  return chi2;
}

TEST(SamplerTest, DistributionIsTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits = {0.0f, 1.0f,  -1.0f, 2.0f, 0.5f,
                                     1.5f, -0.5f, 0.1f,  0.2f, 1.9f};
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    params.seed = 5;
    constexpr int kDraws = 20000;
    // 9 degrees of freedom: 27.88 is the 99.9 % quantile.
    EXPECT_LT(
        ChiSquare(DrawMany(logits, params, kDraws),
                  Softmax(logits, static_cast<double>(temperature)), kDraws),
        27.88)
        << "temperature " << temperature;
  }
}

TEST(SamplerTest, FiltersRenormaliseWhatTheyKeep) {
  const std::vector<float> logits = {2.0f, 1.0f, 0.5f, -3.0f, -4.0f};
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_k = 3;
  constexpr int kDraws = 20000;
  const std::map<TokenId, int> counts = DrawMany(logits, params, kDraws);
  EXPECT_EQ(Keys(counts), (std::set<TokenId>{0, 1, 2}));
  const std::vector<float> kept(logits.begin(), logits.begin() + 3);
  // 2 degrees of freedom, 99.9 %.
  EXPECT_LT(ChiSquare(counts, Softmax(kept, 1.0), kDraws), 13.82);
}

TEST(SamplerTest, TopKKeepsTheBestAndTiesGoToTheLowerIds) {
  const std::vector<float> logits = {1, 2, 1, 2, 1, 1};
  SamplingParams params;
  params.temperature = 100.0f;
  params.top_k = 4;
  EXPECT_EQ(Keys(DrawMany(logits, params, 500)),
            (std::set<TokenId>{0, 1, 2, 3}));
  params.top_k = 1;
  EXPECT_EQ(Keys(DrawMany(logits, params, 100)), (std::set<TokenId>{1}));
}

TEST(SamplerTest, LargeAndSmallTopKAgreeWithASort) {
  const std::vector<float> logits = RandomLogits(3000, 4, 0.1f);
  std::vector<TokenId> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenId>(i);
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (int k : {5, 300}) {
    SamplingParams params;
    params.temperature = 1.0f;
    params.top_k = k;
    const std::set<TokenId> best(order.begin(), order.begin() + k);
    const std::set<TokenId> seen = Keys(DrawMany(logits, params, 20 * k));
    EXPECT_TRUE(
        std::includes(best.begin(), best.end(), seen.begin(), seen.end()));
    EXPECT_GT(seen.size(), best.size() * 9 / 10);
  }
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesTheMass) {
  // Probabilities 0.5, 0.25, 0.125, 0.125 in exact binary fractions.
  const std::vector<float> logits = {0.0f, std::log(0.5f), std::log(0.25f),
                                     std::log(0.25f)};
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_p = 0.4f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 300)), (std::set<TokenId>{0}));
  params.top_p = 0.6f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 300)), (std::set<TokenId>{0, 1}));
  params.top_p = 0.8f;  // the tie at 0.125 goes to the lower id
  EXPECT_EQ(Keys(DrawMany(logits, params, 300)), (std::set<TokenId>{0, 1, 2}));
  params.top_p = 1.0f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 300)).size(), 4u);
  params.top_p = 1e-6f;  // never nothing
  EXPECT_EQ(Keys(DrawMany(logits, params, 50)), (std::set<TokenId>{0}));
}

TEST(SamplerTest, TopPIsOfTheMassThatTopKLeft) {
  // Of 0.4, 0.3, 0.2, 0.1: top-2 leaves 4/7 and 3/7, so 0.5 keeps one.
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f),
                                     std::log(0.2f), std::log(0.1f)};
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_p = 0.5f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 300)), (std::set<TokenId>{0, 1}));
  params.top_k = 2;
  EXPECT_EQ(Keys(DrawMany(logits, params, 300)), (std::set<TokenId>{0}));
}

TEST(SamplerTest, MinPIsAFractionOfTheTopProbability) {
  const std::vector<float> logits = {0.0f, std::log(0.5f), std::log(0.09f),
                                     -INFINITY};
  SamplingParams params;
  params.temperature = 1.0f;
  params.min_p = 0.1f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 500)), (std::set<TokenId>{0, 1}));
  params.min_p = 1.0f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 100)), (std::set<TokenId>{0}));
  params.min_p = 0.0f;
  EXPECT_EQ(Keys(DrawMany(logits, params, 2000)), (std::set<TokenId>{0, 1, 2}));
}

TEST(SamplerTest, AFilterThatKeepsEverythingChangesNoDraw) {
  const std::vector<float> logits = RandomLogits(2000, 9, 1.0f);
  SamplingParams off, all_k, all_p;
  off.temperature = all_k.temperature = all_p.temperature = 1.0f;
  all_k.top_k = 2000;
  all_p.top_p = 0.9999999f;
  int same_p = 0;
  for (int i = 0; i < 200; ++i) {
    const TokenId t = SampleToken(logits, {}, off, i, 0).token;
    EXPECT_EQ(t, SampleToken(logits, {}, all_k, i, 0).token);
    same_p += t == SampleToken(logits, {}, all_p, i, 0).token;
  }
  EXPECT_GE(same_p, 199);
}

TEST(SamplerTest, RepetitionPenaltyDividesPositiveAndMultipliesNegative) {
  // Penalised: 4 / 2 = 2 < 3, and -1 * 2 = -2 < -1.5.
  const std::vector<TokenId> history = {0};
  SamplingParams params;
  params.repetition_penalty = 2.0f;
  EXPECT_EQ(SampleToken(std::vector<float>{4, 3}, history, params, 0, 0).token,
            1);
  EXPECT_EQ(
      SampleToken(std::vector<float>{-1, -1.5f}, history, params, 0, 0).token,
      1);
  EXPECT_EQ(SampleToken(std::vector<float>{7, 3}, history, params, 0, 0).token,
            0);
}

TEST(SamplerTest, PresenceCountsOnceAndFrequencyEachTime) {
  const std::vector<float> logits = {5.0f, 4.0f};
  SamplingParams presence;
  presence.presence_penalty = 0.9f;
  const std::vector<TokenId> thrice = {0, 0, 0};
  EXPECT_EQ(SampleToken(logits, thrice, presence, 0, 0).token, 0);
  presence.presence_penalty = 1.1f;
  EXPECT_EQ(SampleToken(logits, thrice, presence, 0, 0).token, 1);
  SamplingParams frequency;
  frequency.frequency_penalty = 0.4f;
  EXPECT_EQ(SampleToken(logits, thrice, frequency, 0, 0).token, 1);
  const std::vector<TokenId> twice = {0, 0};
  EXPECT_EQ(SampleToken(logits, twice, frequency, 0, 0).token, 0);
}

TEST(SamplerTest, PenaltiesSeeTheLastNTokensOnly) {
  const std::vector<float> logits = {5.0f, 4.0f, 0.0f};
  SamplingParams params;
  params.presence_penalty = 2.0f;
  params.penalty_last_n = 2;
  EXPECT_EQ(
      SampleToken(logits, std::vector<TokenId>{0, 2, 2}, params, 0, 0).token,
      0);
  EXPECT_EQ(
      SampleToken(logits, std::vector<TokenId>{2, 0, 2}, params, 0, 0).token,
      1);
  params.penalty_last_n = 0;
  EXPECT_EQ(
      SampleToken(logits, std::vector<TokenId>{2, 0, 2}, params, 0, 0).token,
      0);
}

TEST(SamplerTest, ABiasIsAddedToTheLogitsOfItsTokens) {
  const std::vector<float> logits = {1.0f, 2.0f, 0.0f};
  SamplingParams params;
  params.logit_bias = {{2, 2.5f}, {7, 100.0f}, {-1, 100.0f}};
  EXPECT_EQ(SampleToken(logits, {}, params, 0, 0).token, 2);
  params.logit_bias = {{1, -100.0f}};
  EXPECT_EQ(SampleToken(logits, {}, params, 0, 0).token, 0);
  // Also where nothing is greedy: the draw is of softmax(logits + bias).
  params.temperature = 1.0f;
  params.logit_bias = {{0, 1.0f}};
  const std::vector<float> biased = {2.0f, 2.0f, 0.0f};
  SamplingParams plain;
  plain.temperature = 1.0f;
  for (int position = 0; position < 100; ++position) {
    const SampledToken token = SampleToken(logits, {}, params, position, 0);
    EXPECT_EQ(token.token, SampleToken(biased, {}, plain, position, 0).token);
    EXPECT_EQ(token.logprob, LogProb(logits, token.token));
  }
}

TEST(SamplerTest, LogprobsAreOfTheUntouchedDistribution) {
  const std::vector<float> logits = {1.0f, 3.0f, 2.0f, 3.0f};
  SamplingParams params;
  params.temperature = 0.2f;
  params.top_k = 1;
  params.repetition_penalty = 1.5f;
  const std::vector<TokenId> history = {1};
  const SampledToken s = SampleToken(logits, history, params, 0, 3);
  const std::vector<double> p = Softmax(logits, 1.0);
  EXPECT_EQ(s.token, 3);
  EXPECT_NEAR(s.logprob, std::log(p[3]), 1e-6);
  ASSERT_EQ(s.top.size(), 3u);
  EXPECT_EQ(s.top[0].token, 1);
  EXPECT_EQ(s.top[1].token, 3);
  EXPECT_EQ(s.top[2].token, 2);
  EXPECT_NEAR(s.top[2].logprob, std::log(p[2]), 1e-6);
  EXPECT_EQ(LogProb(logits, 3), s.logprob);
  EXPECT_EQ(SampleToken(logits, {}, params, 0, 100).top.size(), 4u);
}

TEST(SamplerTest, ExtremeLogitsStayFinite) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {-inf, 1e30f, -1e30f, NAN};
  SamplingParams params;
  params.temperature = 1e-30f;
  params.top_p = 0.5f;
  EXPECT_EQ(SampleToken(logits, {}, params, 0, 4).token, 1);
  EXPECT_FLOAT_EQ(SampleToken(logits, {}, params, 0, 0).logprob, 0.0f);
  const std::vector<float> broken = {NAN, NAN};
  EXPECT_EQ(SampleToken(broken, {}, params, 0, 2).token, 0);
  EXPECT_EQ(SampleToken(broken, {}, {}, 0, 2).token, 0);
}

TEST(SamplerTest, ValidationNamesTheParameter) {
  const auto message = [](auto change) {
    SamplingParams params;
    change(params);
    return std::string(ValidateSampling(params).message());
  };
  EXPECT_TRUE(ValidateSampling({}).ok());
  using P = SamplingParams;
  EXPECT_NE(message([](P& p) { p.temperature = -1; }).find("temperature"),
            std::string::npos);
  EXPECT_NE(message([](P& p) { p.temperature = NAN; }).find("temperature"),
            std::string::npos);
  EXPECT_NE(message([](P& p) { p.top_k = -1; }).find("top_k"),
            std::string::npos);
  EXPECT_NE(message([](P& p) { p.top_p = 0; }).find("top_p"),
            std::string::npos);
  EXPECT_NE(message([](P& p) { p.top_p = 1.5f; }).find("1.5"),
            std::string::npos);
  EXPECT_NE(message([](P& p) { p.min_p = -0.1f; }).find("min_p"),
            std::string::npos);
  EXPECT_NE(message([](P& p) {
              p.repetition_penalty = 0;
            }).find("repetition_penalty"),
            std::string::npos);
  EXPECT_NE(message([](P& p) {
              p.presence_penalty = INFINITY;
            }).find("presence_penalty"),
            std::string::npos);
  EXPECT_NE(message([](P& p) {
              p.frequency_penalty = NAN;
            }).find("frequency_penalty"),
            std::string::npos);
  EXPECT_NE(message([](P& p) {
              p.logit_bias = {{3, 101.0f}};
            }).find("logit_bias[3]"),
            std::string::npos);
  EXPECT_NE(message([](P& p) {
              p.logit_bias.assign(kMaxLogitBias + 1, {1, 0.0f});
            }).find("logit_bias"),
            std::string::npos);
  EXPECT_NE(message([](P& p) { p.penalty_last_n = -1; }).find("penalty_last_n"),
            std::string::npos);
}

TEST(SamplerTest, DrawsOnlyWhatIsAllowedAsIfTheRestWereImpossible) {
  const std::vector<float> logits = RandomLogits(100, 3, 3.0f);
  std::vector<uint32_t> allowed(4);
  std::vector<float> impossible = logits;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (i % 3 == 0) {
      allowed[i / 32] |= 1u << (i % 32);
    } else {
      impossible[i] = -INFINITY;
    }
  }
  const std::vector<TokenId> history = {3, 6, 6, 9};
  std::vector<SamplingParams> many(6);
  for (size_t i = 1; i < many.size(); ++i) many[i].temperature = 1.5f;
  many[2].top_k = 60;
  many[3].top_p = 0.7f;
  many[4].min_p = 0.2f;
  many[5].frequency_penalty = 2.0f;
  many[5].logit_bias = {{1, 100.0f}, {3, 5.0f}};
  for (const SamplingParams& params : many) {
    for (int64_t position = 0; position < 50; ++position) {
      const SampledToken token =
          SampleToken(logits, history, params, position, 2, allowed);
      EXPECT_EQ(token.token % 3, 0);
      EXPECT_EQ(token.token,
                SampleToken(impossible, history, params, position, 0).token);
      // Log-probabilities stay the model's, also of what is not allowed.
      EXPECT_EQ(token.logprob, LogProb(logits, token.token));
      EXPECT_EQ(token.top.front().token,
                SampleToken(logits, {}, {}, 0, 0).token);
    }
  }
}

TEST(SamplerTest, SomethingAllowedComesWhateverTheLogitsAre) {
  SamplingParams warm;
  warm.temperature = 1.0f;
  // The second word is missing: what it would be of is not allowed.
  const std::vector<uint32_t> allowed = {1u << 7 | 1u << 20};
  for (const float x : {NAN, -INFINITY, 0.0f}) {
    std::vector<float> logits(64, x);
    logits[40] = 9.0f;
    EXPECT_EQ(SampleToken(logits, {}, {}, 0, 0, allowed).token, 7);
    const TokenId drawn = SampleToken(logits, {}, warm, 0, 0, allowed).token;
    EXPECT_TRUE(drawn == 7 || drawn == 20) << drawn;
  }
}

}  // namespace
}  // namespace xcache
