// Calibration as a whole, on a tiny model: from windows of text to a profile
// that the codec works with.
#include <cmath>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/base/sha256.h"
#include "engine/base/thread_pool.h"
#include "engine/calibration/fit.h"
#include "engine/calibration/float_model.h"
#include "engine/calibration/model_text.h"
#include "engine/calibration/observations.h"
#include "engine/calibration/observations_file.h"
#include "engine/calibration/products.h"
#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/profile.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

class CalibrateTest : public ::testing::Test {
 protected:
  CalibrateTest() : dir_(::testing::TempDir() + "calibrate_test") {
    testing::TinyModelOptions options;
    options.num_layers = 5;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    model_ = testing::MakeTinyModel(options);
  }
  ~CalibrateTest() override { std::filesystem::remove_all(dir_); }

  // Words of few kinds, so that there is something to predict.
  static std::vector<TokenId> Text(uint32_t seed, size_t n) {
    std::mt19937 random(seed);
    std::vector<TokenId> tokens;
    while (tokens.size() < n) {
      const auto word = static_cast<TokenId>(random() % 12);
      for (TokenId i = 0; i < 3; ++i) tokens.push_back(20 + 7 * word + i);
    }
    tokens.resize(n);
    return tokens;
  }

  TransformData Fit(Isa isa, int threads) const {
    ThreadPool pool(threads);
    const Products products(GetKernels(isa), &pool);
    const auto floats = FloatModel::Create(*model_, isa, &pool);
    EXPECT_TRUE(floats.ok()) << floats.status();
    std::vector<std::vector<TokenId>> windows;
    for (uint32_t w = 0; w < 4; ++w) windows.push_back(Text(w, 192));
    const Observations seen = Observe(**floats, model_->hparams(), products,
                                      std::move(windows), 2, 7, nullptr);
    FitOptions options;
    options.group_layers = 2;
    options.rank = 16;
    options.steps = {0.0005, 0.005, 0.05};
    options.statistics_stride = 2;
    auto data = FitTransform(*model_, seen, options, products, nullptr);
    EXPECT_TRUE(data.ok()) << data.status();
    return *std::move(data);
  }

  std::unique_ptr<Engine> MakeEngine() const {
    EngineOptions options;
    options.device = "cpu";
    options.num_threads = 1;
    options.profile_dir = dir_;
    return *CreateEngine(model_, options, {});
  }

  struct Run {
    std::vector<float> logits;  // of the last block
    size_t bytes = 0;           // of pages
  };
  static Run Forward(Engine& engine, const std::string& spec,
                     std::span<const TokenId> tokens) {
    const auto codec = engine.OpenCodec(spec, {});
    EXPECT_TRUE(codec.ok()) << codec.status();
    auto sequence = *engine.NewSequence(**codec, {}, {});
    Run run;
    for (size_t at = 0; at < tokens.size(); at += kBlockTokens) {
      StepItem item;
      item.sequence = sequence.get();
      item.tokens = tokens.subspan(at, kBlockTokens);
      item.logits_mode = LogitsMode::kAll;
      EXPECT_TRUE(engine.Step({&item, 1}).ok());
      run.logits.assign(item.logits.begin(), item.logits.end());
      for (const SealedBlock& sealed : sequence->TakeSealed()) {
        run.bytes += sealed.page.size();
      }
    }
    return run;
  }

  const std::string dir_;
  std::shared_ptr<const Model> model_;
};

// The scalar kernels would take minutes; their bits are those of the others
// (FloatModelTest, FloatMatmulTest).
TEST_F(CalibrateTest, TheSameBytesOnEveryInstructionSetWithAnyThreads) {
  std::string expected;
  int threads = 1;
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    const std::string bytes =
        NewTransformProfile(Fit(isa, threads), model_->fingerprint())
            ->Serialize();
    if (expected.empty()) expected = bytes;
    EXPECT_TRUE(bytes == expected) << IsaName(isa);
    threads = 3;
  }
}

TEST_F(CalibrateTest, FinerLevelsAreNearerAndLarger) {
  ASSERT_TRUE(Profile::Save(*NewTransformProfile(Fit(*ChooseIsa(""), 2),
                                                 model_->fingerprint()),
                            dir_, model_->fingerprint())
                  .ok());
  const auto engine = MakeEngine();
  const std::vector<TokenId> tokens = Text(100, 256);
  const Run exact = Forward(*engine, "kv-fp16", tokens);
  std::vector<double> errors;
  size_t last_bytes = exact.bytes;
  for (const char* rate : {"high", "balanced", "small"}) {
    const Run run =
        Forward(*engine, std::string("xquant-tc:rate=") + rate, tokens);
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < run.logits.size(); ++i) {
      error +=
          std::pow(static_cast<double>(run.logits[i] - exact.logits[i]), 2);
      size += std::pow(static_cast<double>(exact.logits[i]), 2);
    }
    EXPECT_LT(error, 0.03 * size) << rate;
    EXPECT_LT(run.bytes, last_bytes) << rate;
    errors.push_back(error);
    last_bytes = run.bytes;
  }
  // A hundred times the step: beyond what rounding of activations adds.
  EXPECT_LT(errors[0], errors[2]);
}

TEST_F(CalibrateTest, ProfilesKeepWhatWasFitted) {
  TransformData data = Fit(*ChooseIsa(""), 2);
  ASSERT_EQ(data.groups.size(), 2u);
  EXPECT_EQ(data.groups[1].first_layer, 3u);
  for (size_t l = 1; l < data.levels.size(); ++l) {
    for (size_t g = 0; g < data.groups.size(); ++g) {
      EXPECT_LE(data.levels[l].groups[g].channels,
                data.levels[l - 1].groups[g].channels);
    }
  }
  data.origin = "a test";
  const auto parsed = Profile::Parse(
      NewTransformProfile(std::move(data), model_->fingerprint())->Serialize(),
      model_->fingerprint(), ProfileKind::kTransform);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->transform()->origin, "a test");
}

TEST_F(CalibrateTest, TheModelWritesTheSameTextForTheSameSeed) {
  const auto engine = MakeEngine();
  const auto a = WriteWindows(*engine, 3, 70, 1, 5, nullptr);
  const auto b = WriteWindows(*engine, 3, 70, 1, 5, nullptr);
  const auto c = WriteWindows(*engine, 3, 70, 1, 6, nullptr);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ(*a, *b);
  EXPECT_NE(*a, *c);
  for (const auto& window : *a) EXPECT_EQ(window.size(), 70u);
  EXPECT_EQ((*a)[0][0], 1);
}

TEST_F(CalibrateTest, ObservationsAreKeptForTheSameInputsOnly) {
  ThreadPool pool(1);
  const Isa isa = *ChooseIsa("");
  const Products products(GetKernels(isa), &pool);
  const auto floats = FloatModel::Create(*model_, isa, &pool);
  ASSERT_TRUE(floats.ok()) << floats.status();
  const Observations seen = Observe(**floats, model_->hparams(), products,
                                    {Text(1, 128)}, 1, 7, nullptr);
  std::filesystem::create_directories(dir_);
  const std::string path = dir_ + "/seen";
  const Digest inputs = Sha256Of("these"), others = Sha256Of("others");
  EXPECT_TRUE(absl::IsNotFound(LoadObservations(inputs, path).status()));
  ASSERT_TRUE(SaveObservations(seen, inputs, path).ok());
  EXPECT_TRUE(absl::IsNotFound(LoadObservations(others, path).status()));
  const auto back = LoadObservations(inputs, path);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->windows, seen.windows);
  EXPECT_EQ(back->latents, seen.latents);
  EXPECT_EQ(back->covariance, seen.covariance);
  EXPECT_EQ(back->fisher, seen.fisher);
  EXPECT_EQ(back->query_squares, seen.query_squares);
  EXPECT_EQ(back->gradient_windows, seen.gradient_windows);
  EXPECT_EQ(back->sensitivity, seen.sensitivity);
  const auto size = std::filesystem::file_size(path);
  for (const auto cut : {size - 1, size / 2, size_t{40}, size_t{0}}) {
    std::filesystem::resize_file(path, cut);
    EXPECT_TRUE(absl::IsNotFound(LoadObservations(inputs, path).status()));
  }
  EXPECT_TRUE(
      absl::IsUnavailable(SaveObservations(seen, inputs, dir_ + "/none/seen")));
}

TEST_F(CalibrateTest, NoWindowsAreAnError) {
  ThreadPool pool(1);
  const Products products(GetKernels(Isa::kRef), &pool);
  EXPECT_EQ(FitTransform(*model_, Observations{}, {}, products, nullptr)
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace xcache
