#include "tests/unit/engine/engine_conformance.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <span>
#include <utility>

#include "engine/xcache/codec.h"

namespace xcache::testing {

std::vector<std::string> CodecSpecsUnderTest(bool calibrated) {
  std::vector<std::string> specs =
      calibrated ? CodecNames() : CodecNamesWithoutCalibration();
  // Texts of few blocks: with the window that all others have.
  std::replace(specs.begin(), specs.end(), std::string("xquant-tc"),
               std::string("xquant-tc:window=64"));
  for (const char* name : {"xquant", "xquant-gqa"}) {
    if (std::find(specs.begin(), specs.end(), name) == specs.end()) continue;
    specs.push_back(std::string(name) + ":bits=3");
  }
  // These models have fewer layers than xquant-cl's base.
  specs.push_back("xquant-cl:base_layers=1");
  return specs;
}

std::vector<TinyModelOptions> ModelsUnderTest(bool all_architectures) {
  TinyModelOptions gqa;
  gqa.n_heads = 4;
  gqa.n_kv_heads = 2;
  TinyModelOptions mha_bias;
  mha_bias.architecture = "qwen2";
  mha_bias.n_heads = 2;
  mha_bias.n_kv_heads = 2;
  mha_bias.tied = false;
  mha_bias.matrix_type = GgufType::kF16;
  mha_bias.embedding_type = GgufType::kF16;
  TinyModelOptions partial_rope;
  partial_rope.num_layers = 3;
  partial_rope.rope_dim = 16;
  partial_rope.rope_freqs = true;
  partial_rope.matrix_type = GgufType::kQ5_0;
  std::vector<TinyModelOptions> models = {gqa, mha_bias, partial_rope};
  if (all_architectures) {
    TinyModelOptions head_norms = gqa;
    head_norms.architecture = "qwen3";
    TinyModelOptions sliding = gqa;
    sliding.architecture = "gemma3";
    sliding.num_layers = 3;
    models.insert(models.end(), {head_norms, sliding});
  }
  return models;
}

std::unique_ptr<Engine> EngineConformanceTest::Make(
    const TinyModelOptions& options) const {
  auto engine = GetParam().make(MakeTinyModel(options));
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

namespace {

// Two texts that share more than a block, one of its own.
std::vector<Reference> Texts(Engine& engine, const CodecHandle& codec) {
  const int vocab = engine.info().vocab_size;
  std::vector<TokenId> a = RandomTokens(150, vocab, 1);
  std::vector<TokenId> b = RandomTokens(140, vocab, 2);
  std::copy_n(a.begin(), 100, b.begin());
  std::vector<Reference> texts;
  texts.push_back(ComputeReference(engine, codec, std::move(a)));
  texts.push_back(ComputeReference(engine, codec, std::move(b)));
  texts.push_back(ComputeReference(engine, codec, RandomTokens(70, vocab, 3)));
  return texts;
}

TEST_P(EngineConformanceTest, ResultsDependOnTokensAndCodecAlone) {
  uint32_t seed = 0;
  for (const TinyModelOptions& options :
       ModelsUnderTest(GetParam().all_architectures)) {
    const auto engine = Make(options);
    ASSERT_NE(engine, nullptr);
    for (const std::string& spec : CodecSpecsUnderTest(GetParam().calibrated)) {
      const auto codec = engine->OpenCodec(spec, {});
      ASSERT_TRUE(codec.ok()) << codec.status();
      const std::vector<Reference> texts = Texts(*engine, **codec);
      RunRandomActions(*engine, **codec, texts, 30, ++seed,
                       GetParam().logits_tolerance);
      if (HasFailure()) return;
    }
  }
}

// Of one policy throughout, where the random runs mix them.
TEST_P(EngineConformanceTest, BothRematPoliciesGiveTheSame) {
  for (const TinyModelOptions& options :
       ModelsUnderTest(GetParam().all_architectures)) {
    const auto engine = Make(options);
    ASSERT_NE(engine, nullptr);
    for (const std::string& spec : CodecSpecsUnderTest(GetParam().calibrated)) {
      const auto codec = engine->OpenCodec(spec, {});
      ASSERT_TRUE(codec.ok()) << codec.status();
      const std::vector<TokenId> tokens =
          RandomTokens(150, engine->info().vocab_size, 4);
      const Reference a = ComputeReference(*engine, **codec, tokens);
      const Reference b =
          ComputeReference(*engine, **codec, tokens, RematPolicy::kStep);
      EXPECT_TRUE(a.pages == b.pages) << spec;
      for (size_t i = 0; i < tokens.size(); ++i) {
        ExpectSameLogits(b.logits[i], a.logits[i], GetParam().logits_tolerance,
                         spec + ", position " + std::to_string(i));
      }
    }
  }
}

TEST_P(EngineConformanceTest, ALossyCodecIsReadOutsideTheOwnBlock) {
  // With the sinks and the own block exact, two codecs agree up to the end of
  // the first block and differ later: what is sealed really is read.
  const auto engine = Make();
  const std::vector<std::string> names = CodecNames();
  if (names.size() < 2) GTEST_SKIP() << "this build knows one codec only";
  const auto exact = engine->OpenCodec("kv-fp16", {});
  const auto lossy = engine->OpenCodec("xquant:bits=2", {});
  ASSERT_TRUE(exact.ok() && lossy.ok()) << lossy.status();
  const std::vector<TokenId> tokens =
      RandomTokens(100, engine->info().vocab_size, 5);
  const Reference a = ComputeReference(*engine, **exact, tokens);
  const Reference b = ComputeReference(*engine, **lossy, tokens);
  for (size_t i = 0; i < kBlockTokens; ++i) {
    ExpectSameLogits(b.logits[i], a.logits[i], GetParam().logits_tolerance,
                     "position " + std::to_string(i));
  }
  EXPECT_NE(a.logits[kBlockTokens], b.logits[kBlockTokens]);
}

// Of texts whose hidden rows are asked for, those of one whose logits are, all
// in the same steps, with so many tokens of each: [tokens, d_model].
std::vector<std::vector<float>> HiddenRows(
    Engine& engine, const CodecHandle& codec, std::span<const Reference> hidden,
    const Reference& beside, size_t step_tokens, float tolerance) {
  struct Part {
    const Reference* text;
    std::unique_ptr<Sequence> sequence;
    size_t at = 0;
  };
  std::vector<Part> parts;
  for (const Reference& text : hidden) {
    parts.push_back(Part{&text, *engine.NewSequence(codec, {}, {})});
  }
  parts.insert(parts.begin() + 1,
               Part{&beside, *engine.NewSequence(codec, {}, {})});
  std::vector<std::vector<float>> out(parts.size());
  while (true) {
    std::vector<StepItem> items;
    std::vector<size_t> part_of;
    for (size_t i = 0; i < parts.size(); ++i) {
      const size_t left = parts[i].text->tokens.size() - parts[i].at;
      const size_t in_block = kBlockTokens - parts[i].at % kBlockTokens;
      const size_t n = std::min({step_tokens + i, left, in_block});
      if (n == 0) continue;
      StepItem item;
      item.sequence = parts[i].sequence.get();
      item.tokens = std::span(parts[i].text->tokens).subspan(parts[i].at, n);
      item.logits_mode =
          parts[i].text == &beside ? LogitsMode::kAll : LogitsMode::kHidden;
      items.push_back(item);
      part_of.push_back(i);
    }
    if (items.empty()) break;
    const absl::Status status = engine.Step(items);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return {};
    const auto vocab = static_cast<size_t>(engine.info().vocab_size);
    for (size_t i = 0; i < items.size(); ++i) {
      Part& part = parts[part_of[i]];
      const size_t n = items[i].tokens.size();
      if (part.text == &beside) {
        EXPECT_TRUE(items[i].hidden.empty());
        for (size_t row = 0; row < n; ++row) {
          ExpectSameLogits(items[i].logits.subspan(row * vocab, vocab),
                           beside.logits[part.at + row], tolerance,
                           "beside, position " + std::to_string(part.at + row));
        }
      } else {
        EXPECT_TRUE(items[i].logits.empty());
        EXPECT_EQ(items[i].hidden.size(),
                  n * static_cast<size_t>(engine.info().d_model));
        out[part_of[i]].insert(out[part_of[i]].end(), items[i].hidden.begin(),
                               items[i].hidden.end());
      }
      part.sequence->TakeSealed();
      part.at += n;
    }
  }
  out.erase(out.begin() + 1);
  return out;
}

TEST_P(EngineConformanceTest, HiddenRowsAreWhatLogitsAreMadeOf) {
  const float tolerance = GetParam().logits_tolerance;
  for (const TinyModelOptions& options :
       ModelsUnderTest(GetParam().all_architectures)) {
    const auto engine = Make(options);
    ASSERT_NE(engine, nullptr);
    const auto codec = engine->OpenCodec("kv-fp16", {});
    ASSERT_TRUE(codec.ok()) << codec.status();
    const std::vector<Reference> texts = Texts(*engine, **codec);
    const std::span<const Reference> asked = std::span(texts).first(2);
    const auto rows =
        HiddenRows(*engine, **codec, asked, texts[2], 17, tolerance);
    const auto again =
        HiddenRows(*engine, **codec, asked, texts[2], 64, tolerance);
    ASSERT_EQ(rows.size(), 2u);
    ASSERT_EQ(again.size(), 2u);
    const auto model = MakeTinyModel(options);
    const auto d = static_cast<size_t>(engine->info().d_model);
    double error = 0, power = 0;
    std::vector<float> weights(d);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i].size(), asked[i].tokens.size() * d);
      ExpectSameLogits(again[i], rows[i], tolerance, "rows of hidden states");
      for (int64_t token = 0; token < model->output().rows; ++token) {
        DequantizeRow(model->output(), token, weights.data());
        for (size_t at = 0; at < asked[i].tokens.size(); ++at) {
          const double logit = std::inner_product(
              weights.begin(), weights.end(),
              rows[i].begin() + static_cast<ptrdiff_t>(at * d), 0.0);
          const auto expected = static_cast<double>(
              asked[i].logits[at][static_cast<size_t>(token)]);
          error += (logit - expected) * (logit - expected);
          power += expected * expected;
        }
      }
    }
    // Rows are rounded to 8 bits or to BF16 before that product; those of
    // another token have an error of 1 and more.
    EXPECT_LT(std::sqrt(error / power), 0.05);
  }
}

TEST_P(EngineConformanceTest, InfoDescribesTheModel) {
  TinyModelOptions options;
  const auto engine = Make(options);
  const ModelInfo& info = engine->info();
  EXPECT_EQ(info.num_layers, options.num_layers);
  EXPECT_EQ(info.d_model, options.d_model);
  EXPECT_EQ(info.vocab_size, options.vocab_size);
  EXPECT_EQ(info.context_length, options.context_length);
  EXPECT_EQ(info.kv_fp16_bytes_per_token,
            2 * 2 * info.num_layers * info.n_kv_heads * info.head_dim);
  EXPECT_GT(info.weight_bytes, 0);
  EXPECT_FALSE(info.numerics_id.empty());
  EXPECT_GE(engine->kv_block_bytes(),
            static_cast<size_t>(info.kv_fp16_bytes_per_token) * kBlockTokens);
}

TEST_P(EngineConformanceTest, EqualCodecSpecsGiveTheSameHandle) {
  const auto engine = Make();
  const auto a = engine->OpenCodec("kv-fp16", {});
  ASSERT_TRUE(a.ok()) << a.status();
  const auto b = engine->OpenCodec((*a)->spec(), {});
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(*a, *b);
  EXPECT_GT(engine->sequence_bytes(**a), engine->kv_block_bytes());
  for (const std::string& name : CodecSpecsUnderTest(GetParam().calibrated)) {
    if (name == "kv-fp16") continue;
    const auto other = engine->OpenCodec(name, {});
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_NE((*other)->cache_fp(), (*a)->cache_fp());
  }
}

TEST_P(EngineConformanceTest, UnknownCodecsAreInvalid) {
  const auto engine = Make();
  for (const char* spec : {"", "nope", "kv-fp16:bits=4", "kv-fp16:", "a:b:c"}) {
    const auto codec = engine->OpenCodec(spec, {});
    EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument)
        << "'" << spec << "': " << codec.status();
  }
}

// An engine with one sequence that has some tokens.
struct Started {
  std::unique_ptr<Engine> engine;
  const CodecHandle* codec = nullptr;
  std::unique_ptr<Sequence> sequence;
  std::vector<TokenId> tokens;
};

Started Start(std::unique_ptr<Engine> engine, int num_tokens) {
  Started s;
  s.engine = std::move(engine);
  s.codec = *s.engine->OpenCodec("kv-fp16", {});
  s.tokens = RandomTokens(256, s.engine->info().vocab_size, 11);
  s.sequence = *s.engine->NewSequence(*s.codec, {}, {});
  while (static_cast<int>(s.sequence->tokens().size()) < num_tokens) {
    StepItem item;
    item.sequence = s.sequence.get();
    const size_t at = s.sequence->tokens().size();
    item.tokens = std::span(s.tokens).subspan(
        at,
        std::min<size_t>(static_cast<size_t>(num_tokens) - at, kBlockTokens));
    EXPECT_TRUE(s.engine->Step({&item, 1}).ok());
  }
  return s;
}

TEST_P(EngineConformanceTest, StepRejectsBadItemsAndChangesNothing) {
  Started s = Start(Make(), 10);
  auto other = *s.engine->NewSequence(*s.codec, {}, {});
  const auto expect_invalid = [&](std::vector<StepItem> items,
                                  const char* what) {
    EXPECT_EQ(s.engine->Step(items).code(), absl::StatusCode::kInvalidArgument)
        << what;
    EXPECT_EQ(s.sequence->tokens().size(), 10u) << what;
    EXPECT_EQ(other->tokens().size(), 0u) << what;
  };
  const std::vector<TokenId> one = {1};
  const std::vector<TokenId> negative = {-1};
  const std::vector<TokenId> beyond = {s.engine->info().vocab_size};
  const std::vector<TokenId> crossing(55, 1);
  const auto item = [](Sequence* sequence, std::span<const TokenId> tokens) {
    StepItem i;
    i.sequence = sequence;
    i.tokens = tokens;
    return i;
  };
  const StepItem good = item(other.get(), one);
  expect_invalid({good, item(s.sequence.get(), negative)}, "negative id");
  expect_invalid({good, item(s.sequence.get(), beyond)}, "id beyond vocab");
  expect_invalid({good, item(s.sequence.get(), crossing)}, "crosses a block");
  expect_invalid({good, item(s.sequence.get(), {})}, "no tokens");
  expect_invalid({good, item(nullptr, one)}, "no sequence");
  expect_invalid({good, good}, "one sequence twice");
  EXPECT_TRUE(s.engine->Step({}).ok());
}

TEST_P(EngineConformanceTest, TheContextLengthIsTheLimit) {
  TinyModelOptions options;
  options.context_length = 100;
  Started s = Start(Make(options), 100);
  const std::vector<TokenId> one = {1};
  StepItem item;
  item.sequence = s.sequence.get();
  item.tokens = one;
  const absl::Status status = s.engine->Step({&item, 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("101"), std::string::npos);
  EXPECT_NE(std::string(status.message()).find("100"), std::string::npos);
  EXPECT_EQ(s.sequence->Truncate(99), 99);
  EXPECT_TRUE(s.engine->Step({&item, 1}).ok());
}

TEST_P(EngineConformanceTest, NewSequenceChecksItsArguments) {
  Started s = Start(Make(), 128);
  const auto blocks = s.sequence->blocks();
  const std::span<const TokenId> tokens(s.tokens);
  const auto code = [&](std::span<const TokenId> t,
                        std::span<const KvBlockRef> b) {
    return s.engine->NewSequence(*s.codec, t, b).status().code();
  };
  EXPECT_EQ(code(tokens.first(128), blocks), absl::StatusCode::kOk);
  EXPECT_EQ(code(tokens.first(127), blocks),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(tokens.first(64), blocks), absl::StatusCode::kInvalidArgument);
  const std::vector<KvBlockRef> null(1);
  EXPECT_EQ(code(tokens.first(64), null), absl::StatusCode::kInvalidArgument);
  std::vector<TokenId> bad(tokens.begin(), tokens.begin() + 64);
  bad[5] = -3;
  EXPECT_EQ(code(bad, blocks.first(1)), absl::StatusCode::kInvalidArgument);
  const auto stranger = Make();
  EXPECT_EQ(stranger->NewSequence(*s.codec, {}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(EngineConformanceTest, TruncatingForgetsPagesThatWereNotTaken) {
  Started s = Start(Make(), 140);
  EXPECT_EQ(s.sequence->Truncate(130), 130);
  EXPECT_EQ(s.sequence->Truncate(128), 128);
  EXPECT_EQ(s.sequence->blocks().size(), 2u);
  EXPECT_EQ(s.sequence->Truncate(127), 64);
  EXPECT_EQ(s.sequence->blocks().size(), 1u);
  const auto sealed = s.sequence->TakeSealed();
  ASSERT_EQ(sealed.size(), 1u);
  EXPECT_EQ(sealed[0].block_index, 0);
  ASSERT_NE(sealed[0].kv, nullptr);
  EXPECT_EQ(sealed[0].kv->bytes(), s.engine->kv_block_bytes());
  EXPECT_TRUE(s.sequence->TakeSealed().empty());
}

TEST_P(EngineConformanceTest, ABlockOutlivesItsSequence) {
  Started s = Start(Make(), 64);
  std::vector<SealedBlock> sealed = s.sequence->TakeSealed();
  ASSERT_EQ(sealed.size(), 1u);
  s.sequence.reset();
  const std::vector<KvBlockRef> blocks = {sealed[0].kv};
  const auto next =
      s.engine->NewSequence(*s.codec, std::span(s.tokens).first(64), blocks);
  ASSERT_TRUE(next.ok()) << next.status();
  StepItem item;
  item.sequence = next->get();
  item.tokens = std::span(s.tokens).subspan(64, 10);
  EXPECT_TRUE(s.engine->Step({&item, 1}).ok());
}

TEST_P(EngineConformanceTest, RematChecksWhatItIsGiven) {
  Started s = Start(Make(), 192);
  const std::vector<SealedBlock> sealed = s.sequence->TakeSealed();
  ASSERT_EQ(sealed.size(), 3u);
  const std::span<const TokenId> tokens(s.tokens);
  std::vector<RematJob> jobs(3);
  for (size_t i = 0; i < 3; ++i) {
    jobs[i] = {static_cast<int64_t>(i), sealed[i].page,
               tokens.subspan(64 * i, 64)};
  }
  const auto codes = [&](const CodecHandle& codec) {
    std::vector<absl::StatusCode> out;
    for (const auto& result : s.engine->Remat(codec, jobs)) {
      out.push_back(result.status().code());
      EXPECT_EQ(result.ok(), result.ok() && *result != nullptr);
    }
    return out;
  };
  using absl::StatusCode;
  using Codes = std::vector<StatusCode>;
  EXPECT_EQ(codes(*s.codec),
            (Codes{StatusCode::kOk, StatusCode::kOk, StatusCode::kOk}));

  std::string flipped = sealed[1].page;
  flipped[flipped.size() / 2] =
      static_cast<char>(flipped[flipped.size() / 2] ^ 0x10);
  jobs[1].page = flipped;
  EXPECT_EQ(codes(*s.codec),
            (Codes{StatusCode::kOk, StatusCode::kDataLoss, StatusCode::kOk}));
  jobs[1].page = std::string_view(sealed[1].page).substr(0, 100);
  EXPECT_EQ(codes(*s.codec)[1], StatusCode::kDataLoss);
  jobs[1].page = {};
  EXPECT_EQ(codes(*s.codec)[1], StatusCode::kDataLoss);
  jobs[1].page = sealed[2].page;  // whole, but of another block
  EXPECT_EQ(codes(*s.codec)[1], StatusCode::kDataLoss);
  jobs[1].page = sealed[1].page;
  jobs[1].tokens = tokens.subspan(65, 64);
  EXPECT_EQ(codes(*s.codec)[1], StatusCode::kDataLoss);
  jobs[1].tokens = tokens.subspan(64, 63);
  EXPECT_EQ(codes(*s.codec)[1], StatusCode::kDataLoss);
  for (const std::string& name : CodecSpecsUnderTest(GetParam().calibrated)) {
    if (name == "kv-fp16") continue;
    EXPECT_EQ(codes(**s.engine->OpenCodec(name, {})),
              (Codes{StatusCode::kDataLoss, StatusCode::kDataLoss,
                     StatusCode::kDataLoss}));
  }
  EXPECT_TRUE(s.engine->Remat(*s.codec, {}).empty());
}

// A model whose keys in layer 1 overflow FP16.
std::shared_ptr<const Model> OverflowingModel() {
  const TinyModelOptions options;
  GgufWriter writer = TinyModelWriter(options);
  const int kv_dim = options.n_kv_heads * options.head_dim;
  const std::vector<float> huge(static_cast<size_t>(kv_dim * options.d_model),
                                1e30f);
  writer.SetTensor("blk.1.attn_k.weight", {options.d_model, kv_dim},
                   GgufType::kF32, Quantize(GgufType::kF32, huge));
  const std::string path = ::testing::TempDir() + "xcache-overflow.gguf";
  const std::string bytes = writer.Finish();
  std::ofstream(path, std::ios::binary) << bytes;
  auto model = Model::Load(path);
  std::remove(path.c_str());
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *model : nullptr;
}

TEST_P(EngineConformanceTest, WhatCannotBeSealedIsInternal) {
  auto made = GetParam().make(OverflowingModel());
  ASSERT_TRUE(made.ok()) << made.status();
  Engine& engine = **made;
  const CodecHandle* codec = *engine.OpenCodec("kv-fp16", {});
  auto sequence = *engine.NewSequence(*codec, {}, {});
  const std::vector<TokenId> tokens =
      RandomTokens(64, engine.info().vocab_size, 1);
  StepItem item;
  item.sequence = sequence.get();
  item.tokens = std::span(tokens).first(63);
  EXPECT_TRUE(engine.Step({&item, 1}).ok()) << "nothing to seal yet";
  item.tokens = std::span(tokens).last(1);
  const absl::Status status = engine.Step({&item, 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_NE(std::string(status.message()).find("layer 1"), std::string::npos)
      << status;
}

}  // namespace
}  // namespace xcache::testing
