// The CPU engine: the conformance suite on every instruction set and several
// thread counts, and what only the CPU promises - that all of these agree bit
// for bit.
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/engine_conformance.h"
#include "tests/unit/engine/made_up_profiles.h"

namespace xcache::testing {
namespace {

EngineCase CpuCase(Isa isa, int threads) {
  const std::string isa_name(IsaName(isa));
  return {isa_name + "_" + std::to_string(threads),
          [isa_name, threads](std::shared_ptr<const Model> model) {
            EngineOptions options;
            options.device = "cpu";
            options.isa = isa_name;
            options.num_threads = threads;
            options.profile_dir = MadeUpProfiles(*model);
            return CreateEngine(std::move(model), options, {});
          },
          0.0f,
          {},
          /*all_architectures=*/true,
          /*calibrated=*/true};
}

// Each instruction set with and without threads, three threads on the best.
std::vector<EngineCase> CpuCases() {
  std::vector<EngineCase> cases = {CpuCase(Isa::kRef, 1)};
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    cases.push_back(CpuCase(isa, 1));
    cases.push_back(CpuCase(isa, 2));
  }
  cases.push_back(CpuCase(*ChooseIsa(""), 3));
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cpu, EngineConformanceTest,
                         ::testing::ValuesIn(CpuCases()),
                         [](const ::testing::TestParamInfo<EngineCase>& c) {
                           return c.param.name;
                         });

TEST(CpuEngineTest, InstructionSetsAndThreadCountsAgreeBitForBit) {
  for (const TinyModelOptions& options : ModelsUnderTest(true)) {
    const auto model = MakeTinyModel(options);
    // Reference by the scalar kernels on one thread.
    const auto ref = CpuCase(Isa::kRef, 1).make(model);
    ASSERT_TRUE(ref.ok()) << ref.status();
    for (const std::string& spec : CodecSpecsUnderTest(true)) {
      const auto ref_codec = (*ref)->OpenCodec(spec, {});
      ASSERT_TRUE(ref_codec.ok()) << ref_codec.status();
      std::vector<Reference> texts;
      texts.push_back(ComputeReference(
          **ref, **ref_codec, RandomTokens(140, options.vocab_size, 21)));
      texts.push_back(ComputeReference(
          **ref, **ref_codec, RandomTokens(100, options.vocab_size, 22)));
      for (const EngineCase& engine_case : CpuCases()) {
        const auto engine = engine_case.make(model);
        ASSERT_TRUE(engine.ok()) << engine.status();
        EXPECT_EQ((*engine)->info().numerics_id, (*ref)->info().numerics_id);
        const auto codec = (*engine)->OpenCodec(spec, {});
        ASSERT_TRUE(codec.ok()) << codec.status();
        EXPECT_EQ((*codec)->cache_fp(), (*ref_codec)->cache_fp());
        RunRandomActions(**engine, **codec, texts, 15, 7, 0.0f);
        ASSERT_FALSE(HasFailure()) << engine_case.name << ", " << spec;
      }
    }
  }
}

// Long enough for attention to be split into chunks of 512 keys, and for
// windows to reach from one into the next, or not as far.
TEST(CpuEngineTest, ChunkedAttentionAgreesBitForBit) {
  TinyModelOptions all_keys;
  all_keys.n_heads = 4;
  all_keys.n_kv_heads = 2;
  TinyModelOptions sliding = all_keys;
  sliding.architecture = "gemma3";
  sliding.window = 130;
  for (const TinyModelOptions& options : {all_keys, sliding}) {
    const auto model = MakeTinyModel(options);
    const auto ref = CpuCase(Isa::kRef, 1).make(model);
    ASSERT_TRUE(ref.ok()) << ref.status();
    const auto ref_codec = (*ref)->OpenCodec("kv-fp16", {});
    ASSERT_TRUE(ref_codec.ok()) << ref_codec.status();
    std::vector<Reference> texts;
    texts.push_back(ComputeReference(
        **ref, **ref_codec, RandomTokens(700, options.vocab_size, 31)));
    for (const EngineCase& engine_case : CpuCases()) {
      const auto engine = engine_case.make(model);
      ASSERT_TRUE(engine.ok()) << engine.status();
      const auto codec = (*engine)->OpenCodec("kv-fp16", {});
      ASSERT_TRUE(codec.ok()) << codec.status();
      RunRandomActions(**engine, **codec, texts, 25, 8, 0.0f);
      ASSERT_FALSE(HasFailure()) << engine_case.name;
    }
  }
}

// Of layers that slide nothing is made of blocks that no row to come sees; who
// goes on from an earlier place is refused, goes back, or has the block made
// whole.
TEST(CpuEngineTest, BlocksBehindTheWindowGoWithoutTheLayersThatSlide) {
  TinyModelOptions options = ModelsUnderTest(true).back();
  ASSERT_EQ(options.architecture, "gemma3");
  options.num_layers = 4;
  const auto engine = CpuCase(*ChooseIsa(""), 2).make(MakeTinyModel(options));
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_EQ((*engine)->info().window, 48);
  for (const std::string& spec : CodecSpecsUnderTest(true)) {
    SCOPED_TRACE(spec);
    const auto codec = (*engine)->OpenCodec(spec, {});
    ASSERT_TRUE(codec.ok()) << codec.status();
    std::vector<Reference> texts;
    texts.push_back(ComputeReference(
        **engine, **codec, RandomTokens(340, options.vocab_size, 41)));
    texts.push_back(ComputeReference(
        **engine, **codec, RandomTokens(200, options.vocab_size, 42)));
    const std::span<const TokenId> tokens(texts[0].tokens);
    const auto remat = [&](int64_t i, bool whole) {
      RematJob job;
      job.block_index = i;
      job.page = texts[0].pages[static_cast<size_t>(i)];
      job.tokens = tokens.subspan(static_cast<size_t>(i) * 64, 64);
      job.whole = whole;
      auto block = (*engine)->Remat(**codec, {&job, 1});
      EXPECT_TRUE(block[0].ok()) << block[0].status();
      return *std::move(block[0]);
    };
    const auto next_row_is_right = [&](Sequence& sequence) {
      const size_t at = sequence.tokens().size();
      StepItem item;
      item.sequence = &sequence;
      item.tokens = tokens.subspan(at, 1);
      item.logits_mode = LogitsMode::kLast;
      ASSERT_TRUE((*engine)->Step({&item, 1}).ok());
      ExpectSameLogits(item.logits, texts[0].logits[at], 0.0f,
                       "position " + std::to_string(at));
    };
    std::vector<KvBlockRef> blocks;
    for (int64_t i = 0; i < 5; ++i) blocks.push_back(remat(i, i >= 4));
    // The first one has sinks, which are computed.
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(blocks[i]->whole(), i == 0 || i == 4);
      EXPECT_LE(blocks[i]->bytes(), (*engine)->kv_block_bytes());
    }
    EXPECT_LE(2 * blocks[1]->bytes(), blocks[0]->bytes());
    const auto sequence_of = [&](size_t n) {
      return (*engine)->NewSequence(**codec, tokens.first(n * 64),
                                    std::span(blocks).first(n));
    };
    auto sequence = sequence_of(5);
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    next_row_is_right(**sequence);
    EXPECT_EQ((*sequence)->Truncate(320), 320);
    next_row_is_right(**sequence);
    EXPECT_EQ((*sequence)->Truncate(319), 64);
    next_row_is_right(**sequence);
    EXPECT_EQ(sequence_of(4).status().code(),
              absl::StatusCode::kInvalidArgument);
    blocks[3] = remat(3, true);
    sequence = sequence_of(4);
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    next_row_is_right(**sequence);
    RunRandomActions(**engine, **codec, texts, 60, 9, 0.0f);
    ASSERT_FALSE(HasFailure());
  }
}

TEST(EngineFactoryTest, RejectsWhatItDoesNotKnow) {
  const auto model = MakeTinyModel({});
  EngineOptions options;
  for (const char* device :
       {"tpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda 1"}) {
    options.device = device;
    EXPECT_EQ(CreateEngine(model, options, {}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << device;
  }
  options = {};
  options.weights = "fp8";
  EXPECT_EQ(CreateEngine(model, options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  options = {};
  options.isa = "mmx";
  EXPECT_EQ(CreateEngine(model, options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  options = {};
  options.num_threads = -1;
  EXPECT_EQ(CreateEngine(model, options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(EngineFactoryTest, WithoutAPluginAutoIsTheCpuAndCudaSaysWhatIsMissing) {
  ASSERT_EQ(setenv("XCACHE_CUDA_PLUGIN", "/nonexistent/plugin.so", 1), 0);
  EngineOptions options;
  const auto engine = CreateEngine(MakeTinyModel({}), options, {});
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->info().device.substr(0, 4), "cpu/");
  for (const char* device : {"cuda", "cuda:1"}) {
    options.device = device;
    const absl::Status status =
        CreateEngine(MakeTinyModel({}), options, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_NE(std::string(status.message()).find("/nonexistent/plugin.so"),
              std::string::npos)
        << status;
  }
  unsetenv("XCACHE_CUDA_PLUGIN");
}

TEST(EngineFactoryTest, ReportsProgressAndKeepsWhatItNeedsOfTheModel) {
  auto model = MakeTinyModel({});
  std::vector<double> fractions;
  EngineOptions options;
  options.device = "cpu";
  options.num_threads = 2;
  auto engine = CreateEngine(std::move(model), options,
                             [&](std::string_view, double fraction) {
                               fractions.push_back(fraction);
                             });
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_FALSE(fractions.empty());
  EXPECT_EQ(fractions.back(), 1.0);
  const CodecHandle* codec = *(*engine)->OpenCodec("kv-fp16", {});
  const Reference reference = ComputeReference(
      **engine, *codec, RandomTokens(70, (*engine)->info().vocab_size, 1));
  EXPECT_EQ(reference.logits.size(), 70u);
}

}  // namespace
}  // namespace xcache::testing
