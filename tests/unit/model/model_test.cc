#include "engine/model/model.h"

#include <cmath>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using testing::GgufWriter;
using ::testing::HasSubstr;
using testing::MakeTinyModel;
using testing::Quantize;
using testing::TinyModelBytes;
using testing::TinyModelOptions;
using testing::TinyModelWriter;

// Keeps the bytes that a parsed file looks at.
struct Loaded {
  std::string bytes;
  absl::StatusOr<std::shared_ptr<const Model>> model =
      absl::UnknownError("not loaded");

  explicit Loaded(const GgufWriter& writer) : bytes(writer.Finish()) {
    auto gguf = GgufFile::Parse(
        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
        "test.gguf");
    if (!gguf.ok()) {
      model = gguf.status();
    } else {
      model = Model::FromGguf(*std::move(gguf));
    }
  }
};

absl::Status LoadStatus(const GgufWriter& writer) {
  return Loaded(writer).model.status();
}

TEST(ModelTest, TinyModelHasItsHyperParametersAndTensors) {
  TinyModelOptions options;
  options.num_layers = 3;
  options.d_model = 96;
  options.n_heads = 4;
  options.n_kv_heads = 2;
  const auto model = MakeTinyModel(options);
  const HyperParams& h = model->hparams();
  EXPECT_EQ(h.architecture, "llama");
  EXPECT_EQ(h.num_layers, 3);
  EXPECT_EQ(h.d_model, 96);
  EXPECT_EQ(h.n_heads, 4);
  EXPECT_EQ(h.n_kv_heads, 2);
  EXPECT_EQ(h.head_dim, 32);
  EXPECT_EQ(h.kv_dim(), 64);
  EXPECT_EQ(h.d_ff, 128);
  EXPECT_EQ(h.vocab_size, 384);
  EXPECT_EQ(h.context_length, 2048);
  EXPECT_EQ(h.rope_dim, 32);
  EXPECT_EQ(h.rope_pairs, RopePairs::kInterleaved);
  EXPECT_EQ(h.rope_scaling, RopeScaling::kNone);
  EXPECT_FLOAT_EQ(h.rms_norm_eps, 1e-5f);
  EXPECT_EQ(model->layer(2).wk.rows, 64);
  EXPECT_EQ(model->layer(2).wk.cols, 96);
  EXPECT_EQ(model->layer(2).wo.rows, 96);
  EXPECT_EQ(model->layer(2).wo.cols, 128);
  EXPECT_EQ(model->layer(0).attn_norm.rows, 1);
  EXPECT_FALSE(model->layer(0).bq.has_value());
  EXPECT_FALSE(model->rope_freqs().has_value());
  EXPECT_EQ(model->output().bytes.data(), model->token_embd().bytes.data());
  const int64_t per_layer =
      2 * 96 + 96 * (128 + 64 + 64) + 128 * 96 + 3 * 96 * 128;
  EXPECT_EQ(model->num_parameters(), 384 * 96 + 96 + 3 * per_layer);
}

TEST(ModelTest, OptionalTensorsAreBound) {
  TinyModelOptions options;
  options.tied = false;
  options.qkv_bias = true;
  options.rope_freqs = true;
  const auto model = MakeTinyModel(options);
  EXPECT_EQ(model->output().name, "output.weight");
  ASSERT_TRUE(model->rope_freqs().has_value());
  EXPECT_EQ(model->rope_freqs()->cols, 16);
  ASSERT_TRUE(model->layer(1).bk.has_value());
  EXPECT_EQ(model->layer(1).bk->cols, 32);
}

TEST(ModelTest, FingerprintIsThatOfTheBytes) {
  TinyModelOptions options;
  const auto model = MakeTinyModel(options);
  EXPECT_EQ(model->fingerprint(), Sha256Of(TinyModelBytes(options)));
  options.seed = 2;
  EXPECT_NE(model->fingerprint(), MakeTinyModel(options)->fingerprint());
}

TEST(ModelTest, MissingFileIsNotFound) {
  EXPECT_EQ(Model::Load("/nonexistent/model.gguf").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(ModelTest, WhatWouldBeAWrongModelIsUnimplemented) {
  const struct {
    const char* key;
    uint32_t value;
  } kCases[] = {{"llama.expert_count", 8},
                {"llama.expert_used_count", 2},
                {"llama.attention.sliding_window", 4096},
                {"llama.attention.causal", 0},
                {"llama.some_new_thing", 1}};
  for (const auto& c : kCases) {
    GgufWriter writer = TinyModelWriter({});
    writer.SetUint32(c.key, c.value);
    const absl::Status status = LoadStatus(writer);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << c.key;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.key));
  }
  for (const char* key :
       {"llama.attn_logit_softcapping", "llama.final_logit_softcapping"}) {
    GgufWriter writer = TinyModelWriter({});
    writer.SetFloat(key, 30.0f);
    EXPECT_EQ(LoadStatus(writer).code(), absl::StatusCode::kUnimplemented);
  }
  for (const char* type : {"yarn", "longrope", "su"}) {
    GgufWriter writer = TinyModelWriter({});
    writer.SetString("llama.rope.scaling.type", type);
    const absl::Status status = LoadStatus(writer);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()), HasSubstr(type));
  }
  GgufWriter writer = TinyModelWriter({});
  writer.SetString("general.architecture", "mamba");
  const absl::Status status = LoadStatus(writer);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("one of llama"));
}

TEST(ModelTest, NeutralHyperParametersLoad) {
  GgufWriter writer = TinyModelWriter({});
  writer.SetUint32("llama.expert_count", 0);
  writer.SetUint32("llama.attention.sliding_window", 0);
  writer.SetFloat("llama.final_logit_softcapping", 0.0f);
  writer.SetBool("llama.attention.causal", true);
  EXPECT_TRUE(LoadStatus(writer).ok()) << LoadStatus(writer);
}

TEST(ModelTest, LinearRopeScalingIsRead) {
  GgufWriter writer = TinyModelWriter({});
  writer.SetString("llama.rope.scaling.type", "linear");
  writer.SetFloat("llama.rope.scaling.factor", 4.0f);
  Loaded loaded(writer);
  ASSERT_TRUE(loaded.model.ok()) << loaded.model.status();
  EXPECT_EQ((*loaded.model)->hparams().rope_scaling, RopeScaling::kLinear);
  EXPECT_EQ((*loaded.model)->hparams().rope_linear_factor, 4.0f);
}

TEST(ModelTest, DefaultsFollowTheOtherHyperParameters) {
  GgufWriter writer = TinyModelWriter({.n_kv_heads = 2});
  for (const char* key :
       {"llama.attention.key_length", "llama.attention.value_length",
        "llama.rope.dimension_count", "llama.attention.head_count_kv",
        "llama.rope.freq_base", "llama.vocab_size"}) {
    writer.Remove(key);
  }
  Loaded loaded(writer);
  ASSERT_TRUE(loaded.model.ok()) << loaded.model.status();
  const HyperParams& h = (*loaded.model)->hparams();
  EXPECT_EQ(h.head_dim, 32);
  EXPECT_EQ(h.rope_dim, 32);
  EXPECT_EQ(h.n_kv_heads, 2);
  EXPECT_EQ(h.rope_freq_base, 10000.0f);
}

TEST(ModelTest, MissingHyperParameterIsNamed) {
  for (const char* key : {"llama.block_count", "llama.embedding_length",
                          "llama.attention.layer_norm_rms_epsilon",
                          "tokenizer.ggml.tokens", "general.architecture"}) {
    GgufWriter writer = TinyModelWriter({});
    writer.Remove(key);
    EXPECT_THAT(std::string(LoadStatus(writer).message()), HasSubstr(key));
  }
}

TEST(ModelTest, HyperParametersOutOfRangeAreInvalid) {
  const struct {
    const char* key;
    uint32_t value;
  } kCases[] = {{"llama.block_count", 0},
                {"llama.block_count", 0xffffffff},
                {"llama.attention.head_count_kv", 3},
                {"llama.attention.head_count", 0},
                {"llama.rope.dimension_count", 33},
                {"llama.rope.dimension_count", 64}};
  for (const auto& c : kCases) {
    GgufWriter writer = TinyModelWriter({.n_heads = 4, .n_kv_heads = 2});
    writer.SetUint32(c.key, c.value);
    const absl::Status status = LoadStatus(writer);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
  GgufWriter writer = TinyModelWriter({});
  writer.SetFloat("llama.rope.freq_base", std::nanf(""));
  EXPECT_EQ(LoadStatus(writer).code(), absl::StatusCode::kInvalidArgument);
}

TEST(ModelTest, MissingTensorIsNamedWithItsShape) {
  GgufWriter writer = TinyModelWriter({});
  writer.RemoveTensor("blk.1.ffn_up.weight");
  const absl::Status status = LoadStatus(writer);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("blk.1.ffn_up.weight: expected [64, 128], found none"));
}

TEST(ModelTest, WronglyShapedTensorIsNamedWithBothShapes) {
  GgufWriter writer = TinyModelWriter({});
  writer.SetTensor("blk.0.attn_k.weight", {64, 64}, GgufType::kF32,
                   std::string(64 * 64 * 4, '\0'));
  const absl::Status status = LoadStatus(writer);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      HasSubstr("blk.0.attn_k.weight: expected [64, 32], found [64, 64]"));
}

TEST(ModelTest, TensorNobodyAsksForIsUnimplemented) {
  for (const char* name :
       {"blk.0.attn_q_norm.weight", "blk.0.attn_output.bias",
        "blk.0.ffn_gate_exps.weight", "blk.2.attn_norm.weight"}) {
    GgufWriter writer = TinyModelWriter({});
    writer.SetTensor(name, {64}, GgufType::kF32, std::string(256, '\0'));
    const absl::Status status = LoadStatus(writer);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
}

TEST(ModelTest, EmbeddingMustMatchTheVocabulary) {
  GgufWriter writer = TinyModelWriter({});
  const std::vector<std::string> tokens(380, "x");
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  EXPECT_THAT(std::string(LoadStatus(writer).message()),
              HasSubstr("token_embd.weight: expected [64, 380]"));
}

TEST(ModelTest, EveryTensorTypeLoads) {
  for (GgufType type :
       {GgufType::kF32, GgufType::kF16, GgufType::kBF16, GgufType::kQ4_0,
        GgufType::kQ4_1, GgufType::kQ5_0, GgufType::kQ5_1, GgufType::kQ8_0,
        GgufType::kQ4_K, GgufType::kQ5_K, GgufType::kQ6_K, GgufType::kQ2_K,
        GgufType::kQ3_K, GgufType::kIQ4_NL, GgufType::kIQ4_XS}) {
    TinyModelOptions options;
    options.num_layers = 1;
    options.d_model = 256;
    options.n_heads = 8;
    options.d_ff = 256;
    options.matrix_type = type;
    const auto model = MakeTinyModel(options);
    EXPECT_EQ(model->layer(0).wq.type, type);
    // Weights come out as they were made: near zero mean, deviation 1.5/16.
    std::vector<float> row(256);
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < 256; ++r) {
      DequantizeRow(model->layer(0).wq, r, row.data());
      for (float w : row) {
        sum += w;
        squares += double{w} * w;
      }
    }
    EXPECT_NEAR(sum / 65536, 0.0, 0.002) << InfoOf(type)->name;
    // Of two bits a weight the rounding shows.
    EXPECT_NEAR(std::sqrt(squares / 65536), 1.5 / 16,
                type == GgufType::kQ2_K ? 0.01 : 0.003)
        << InfoOf(type)->name;
  }
}

TEST(ModelTest, RealModelLoads) {
  const char* path = std::getenv("XCACHE_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_MODEL does not name a model";
  }
  const auto model = Model::Load(path);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_GT((*model)->num_parameters(), 1000000);
}

}  // namespace
}  // namespace xcache
