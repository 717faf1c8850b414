#include "engine/calibration/float_model.h"

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/kernels/isa.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

constexpr int kTokens = 192;

testing::TinyModelOptions Tiny() {
  testing::TinyModelOptions options;
  options.num_layers = 3;
  options.n_heads = 4;
  options.n_kv_heads = 2;
  options.qkv_bias = true;
  return options;
}

std::vector<TokenId> Tokens(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(kTokens);
  for (TokenId& t : tokens) t = static_cast<TokenId>(random() % 384);
  return tokens;
}

struct Fixture {
  explicit Fixture(Isa isa = *ChooseIsa(""), int threads = 2)
      : pool(threads),
        model(testing::MakeTinyModel(Tiny())),
        floats(*FloatModel::Create(*model, isa, &pool)),
        tokens(Tokens(3)) {}

  TokenId Target(int row) const {
    return tokens[static_cast<size_t>(row + 1) % kTokens];
  }
  FloatModel::TargetFn target() const {
    return [this](int row, std::span<const float>) { return Target(row); };
  }
  std::vector<std::vector<float>> Gradients(bool whole) {
    std::vector<std::vector<float>> out(3);
    const size_t n =
        kTokens * 2 * static_cast<size_t>(model->hparams().kv_dim());
    floats->Gradients(
        tokens, target(), nullptr,
        [&](int layer, const float* g) {
          out[static_cast<size_t>(layer)].assign(g, g + n);
        },
        whole);
    return out;
  }
  // The sum of log-likelihoods from row `first` on.
  double Likelihood(int first) {
    double sum = 0.0;
    const std::vector<double> all = floats->LogLikelihoods(tokens, target());
    for (size_t r = static_cast<size_t>(first); r < all.size(); ++r) {
      sum += all[r];
    }
    return sum;
  }
  // Its change along `direction`, by central differences.
  double Slope(int layer, const std::vector<float>& direction, int first) {
    constexpr double kEpsilon = 0.02;
    double sum = 0.0;
    for (double sign : {1.0, -1.0}) {
      std::vector<float> moved = direction;
      for (float& v : moved) v *= static_cast<float>(sign * kEpsilon);
      floats->Disturb(layer, std::move(moved));
      sum += sign * Likelihood(first);
    }
    floats->Disturb(-1, {});
    return sum / (2.0 * kEpsilon);
  }

  ThreadPool pool;
  std::shared_ptr<const Model> model;
  std::unique_ptr<FloatModel> floats;
  std::vector<TokenId> tokens;
};

// A random direction in the rows [begin, end).
std::vector<float> Direction(size_t width, int begin, int end, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(kTokens * width, 0.0f);
  for (size_t i = static_cast<size_t>(begin) * width;
       i < static_cast<size_t>(end) * width; ++i) {
    out[i] = normal(random);
  }
  return out;
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return sum;
}

double Norm(const std::vector<float>& a) { return std::sqrt(Dot(a, a)); }

TEST(FloatModelTest, GradientsAreTheSlopesOfTheLikelihood) {
  Fixture s;
  const std::vector<std::vector<float>> gradients = s.Gradients(true);
  const size_t width = gradients[0].size() / kTokens;
  for (int layer = 0; layer < 3; ++layer) {
    const std::vector<float>& g = gradients[static_cast<size_t>(layer)];
    ASSERT_GT(Norm(g), 0.0);
    for (uint32_t seed = 0; seed < 3; ++seed) {
      // Half random, half along the gradient, so that the slope is not small.
      std::vector<float> direction = Direction(width, 0, kTokens, seed);
      const double scale = Norm(direction) / Norm(g);
      for (size_t i = 0; i < direction.size(); ++i) {
        direction[i] = 0.1f * (direction[i] + static_cast<float>(scale) * g[i]);
      }
      const double expected = s.Slope(layer, direction, 0);
      EXPECT_NEAR(Dot(g, direction), expected, 0.01 * std::abs(expected))
          << layer;
    }
  }
}

// In the last layer a row acts on other blocks by their reads alone.
TEST(FloatModelTest, OutsideGradientsAreWhatOtherBlocksRead) {
  Fixture s;
  const std::vector<std::vector<float>> gradients = s.Gradients(false);
  const std::vector<float>& g = gradients[2];
  const size_t width = g.size() / kTokens;
  for (int block = 0; block < 2; ++block) {
    std::vector<float> direction =
        Direction(width, 64 * block, 64 * (block + 1), 7);
    const double scale = Norm(direction) / Norm(g);
    for (size_t i = 0; i < direction.size(); ++i) {
      if (direction[i] == 0.0f) continue;
      direction[i] = 0.1f * (direction[i] + static_cast<float>(scale) * g[i]);
    }
    const double expected = s.Slope(2, direction, 64 * (block + 1));
    EXPECT_NEAR(Dot(g, direction), expected, 0.01 * std::abs(expected));
  }
  for (const std::vector<float>& layer : gradients) {
    for (size_t i = 128 * width; i < layer.size(); ++i) {
      ASSERT_EQ(layer[i], 0.0f) << "nothing reads the last block";
    }
  }
}

TEST(FloatModelTest, TheSameBitsOnEveryInstructionSetWithAnyThreads) {
  Fixture ref(Isa::kRef, 1);
  const std::vector<std::vector<float>> expected = ref.Gradients(false);
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    Fixture other(isa, 3);
    EXPECT_EQ(other.Gradients(false), expected) << IsaName(isa);
  }
}

}  // namespace
}  // namespace xcache
