#include "engine/model/expand_heads.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine_factory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;
using testing::TinyModelOptions;

constexpr std::string_view kHeadsKey = "llama.attention.head_count_kv";

std::string OutPath(const std::string& name) {
  return ::testing::TempDir() + "/expand_heads_" + name + ".gguf";
}

// The model as it stands in the file that it was expanded to.
std::shared_ptr<const Model> Expanded(const Model& model,
                                      const std::string& name) {
  const std::string path = OutPath(name);
  const absl::Status status = WriteExpandedHeads(model, path);
  EXPECT_TRUE(status.ok()) << status;
  auto expanded = Model::Load(path);
  EXPECT_TRUE(expanded.ok()) << expanded.status();
  std::filesystem::remove(path);
  return expanded.ok() ? *std::move(expanded) : nullptr;
}

// Logits of all of `tokens`, [tokens, vocab], through the lossless codec.
std::vector<float> Logits(std::shared_ptr<const Model> model,
                          const std::vector<TokenId>& tokens) {
  EngineOptions options;
  options.num_threads = 2;
  auto engine = CreateEngine(std::move(model), options, {});
  EXPECT_TRUE(engine.ok()) << engine.status();
  const auto codec = (*engine)->OpenCodec("kv-fp16", {});
  EXPECT_TRUE(codec.ok()) << codec.status();
  auto sequence = (*engine)->NewSequence(**codec, {}, {});
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  std::vector<float> logits;
  for (size_t at = 0; at < tokens.size(); at += kBlockTokens) {
    StepItem item;
    item.sequence = sequence->get();
    item.tokens = std::span(tokens).subspan(
        at, std::min<size_t>(kBlockTokens, tokens.size() - at));
    item.logits_mode = LogitsMode::kAll;
    const absl::Status status = (*engine)->Step({&item, 1});
    EXPECT_TRUE(status.ok()) << status;
    logits.insert(logits.end(), item.logits.begin(), item.logits.end());
  }
  return logits;
}

std::vector<TokenId> SomeTokens(int count, int vocab_size) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i)
    tokens.push_back((i * 7919 + 13) % vocab_size);
  return tokens;
}

TEST(ExpandHeadsTest, ComputesTheSameLogits) {
  for (const GgufType type :
       {GgufType::kF32, GgufType::kBF16, GgufType::kQ4_1, GgufType::kQ8_0,
        GgufType::kQ4_K, GgufType::kQ6_K}) {
    for (const bool bias : {false, true}) {
      TinyModelOptions options;
      options.d_model = 256;
      options.d_ff = 256;
      options.n_heads = 8;
      options.n_kv_heads = 2;
      options.matrix_type = type;
      options.qkv_bias = bias;
      const auto model = testing::MakeTinyModel(options);
      const auto expanded = Expanded(*model, "logits");
      ASSERT_NE(expanded, nullptr);
      EXPECT_EQ(expanded->hparams().n_kv_heads, 8);
      EXPECT_EQ(expanded->hparams().n_heads, 8);
      const auto tokens = SomeTokens(150, options.vocab_size);
      const std::vector<float> before = Logits(model, tokens);
      EXPECT_EQ(before, Logits(expanded, tokens))
          << InfoOf(type)->name << (bias ? " with biases" : "");
      // Not of equal rows, which nothing could tell apart.
      EXPECT_NE(before[0], before[1]);
    }
  }
}

TEST(ExpandHeadsTest, KeepsEveryOtherByte) {
  TinyModelOptions options;
  options.n_heads = 6;
  options.n_kv_heads = 3;
  options.rope_freqs = true;
  const auto model = testing::MakeTinyModel(options);
  const auto expanded = Expanded(*model, "bytes");
  ASSERT_NE(expanded, nullptr);
  const GgufFile &from = model->gguf(), &to = expanded->gguf();
  ASSERT_EQ(from.entries().size(), to.entries().size());
  for (size_t i = 0; i < from.entries().size(); ++i) {
    const GgufEntry &a = from.entries()[i], &b = to.entries()[i];
    EXPECT_EQ(a.key, b.key);
    EXPECT_EQ(std::ranges::equal(a.bytes, b.bytes), a.key != kHeadsKey)
        << a.key;
  }
  ASSERT_EQ(from.tensors().size(), to.tensors().size());
  for (size_t i = 0; i < from.tensors().size(); ++i) {
    const GgufTensor &a = from.tensors()[i], &b = to.tensors()[i];
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(a.type, b.type);
    const bool of_heads = a.name.find("attn_k") != std::string::npos ||
                          a.name.find("attn_v") != std::string::npos;
    EXPECT_EQ(std::ranges::equal(a.bytes, b.bytes), !of_heads) << a.name;
    EXPECT_EQ(b.bytes.size(), a.bytes.size() * (of_heads ? 2 : 1)) << a.name;
  }
}

TEST(ExpandHeadsTest, RefusesAnMhaModelAndLeavesTheFile) {
  TinyModelOptions options;
  options.n_heads = options.n_kv_heads = 2;
  const std::string path = OutPath("refused");
  std::ofstream(path) << "before";
  const absl::Status status =
      WriteExpandedHeads(*testing::MakeTinyModel(options), path);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("found 2 of each: an MHA model already"));
  EXPECT_EQ(std::filesystem::file_size(path), 6u);
  std::filesystem::remove(path);
}

TEST(ExpandHeadsTest, SaysWhereItCannotWrite) {
  const std::string path = ::testing::TempDir() + "/no/such/folder/m.gguf";
  const absl::Status status =
      WriteExpandedHeads(*testing::MakeTinyModel({}), path);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

TEST(ExpandHeadsModelTest, ARealModelComputesTheSame) {
  const char* path = std::getenv("XCACHE_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_MODEL names no model";
  }
  const auto model = Model::Load(path);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto expanded = Expanded(**model, "real");
  ASSERT_NE(expanded, nullptr);
  const auto tokens = SomeTokens(100, (*model)->hparams().vocab_size);
  EXPECT_EQ(Logits(*model, tokens), Logits(expanded, tokens));
}

}  // namespace
}  // namespace xcache
