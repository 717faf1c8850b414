// The model's file after it was loaded: whatever is done to it, the engine
// computes with the bytes that its fingerprint is of.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine_factory.h"
#include "engine/model/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache::testing {
namespace {

// A codec that has a profile, and one that reads the weights themselves.
constexpr const char* kCodecs[] = {"xquant-cl-gqa:bits=4", "xquant:bits=4"};

std::vector<float> Logits(Engine& engine, const char* spec) {
  const auto codec = engine.OpenCodec(spec, {});
  EXPECT_TRUE(codec.ok()) << codec.status();
  auto sequence = engine.NewSequence(**codec, {}, {});
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  std::vector<float> all;
  for (int block = 0; block < 3; ++block) {
    std::vector<TokenId> tokens;
    for (int i = 0; i < kBlockTokens; ++i) {
      tokens.push_back((37 * (block * kBlockTokens + i) + 5) % 384);
    }
    std::vector<StepItem> items(1);
    items[0].sequence = sequence->get();
    items[0].tokens = tokens;
    items[0].logits_mode = LogitsMode::kAll;
    EXPECT_TRUE(engine.Step(items).ok());
    all.insert(all.end(), items[0].logits.begin(), items[0].logits.end());
  }
  return all;
}

struct Loaded {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Engine> engine;
};

Loaded Load(const std::string& path) {
  auto model = Model::Load(path);
  EXPECT_TRUE(model.ok()) << model.status();
  EngineOptions options;
  options.device = "cpu";
  options.num_threads = 1;
  options.last_of_model = true;
  auto engine = CreateEngine(*model, options, {});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return {*model, *std::move(engine)};
}

class ModelFileTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    std::string dir = ::testing::TempDir() + "model_file_test_XXXXXX";
    ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
    path_ = dir + "/model.gguf";
    options_.tied = GetParam();
    options_.n_kv_heads = 1;
    WriteTinyModel(options_, path_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  // What an engine says that no one has disturbed.
  std::vector<std::vector<float>> Undisturbed() {
    const Loaded loaded = Load(path_);
    std::vector<std::vector<float>> all;
    for (const char* spec : kCodecs)
      all.push_back(Logits(*loaded.engine, spec));
    return all;
  }

  std::filesystem::path dir_;
  std::string path_;
  TinyModelOptions options_;
};

INSTANTIATE_TEST_SUITE_P(TiedAndNot, ModelFileTest, ::testing::Bool());

TEST_P(ModelFileTest, TruncatedInPlaceAnswersAsBefore) {
  const auto expected = Undisturbed();
  const Loaded loaded = Load(path_);
  std::filesystem::resize_file(path_, 0);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(Logits(*loaded.engine, kCodecs[i]), expected[i]) << kCodecs[i];
  }
  const auto tokenizer = Tokenizer::Create(loaded.model->gguf());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->Encode("still here").ok());
}

TEST_P(ModelFileTest, OverwrittenInPlaceAnswersAsItsFingerprintSays) {
  const auto expected = Undisturbed();
  const Loaded loaded = Load(path_);
  TinyModelOptions other = options_;
  other.seed = 2;
  const std::string bytes = TinyModelBytes(other);
  ASSERT_EQ(bytes.size(), std::filesystem::file_size(path_));
  std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary) << bytes;
  EXPECT_NE(*StampOf(path_), *loaded.model->gguf().stamp());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(Logits(*loaded.engine, kCodecs[i]), expected[i]) << kCodecs[i];
  }
  const Loaded now = Load(path_);
  EXPECT_NE(now.model->fingerprint(), loaded.model->fingerprint());
  EXPECT_NE(Logits(*now.engine, kCodecs[0]), expected[0]);
}

}  // namespace
}  // namespace xcache::testing
