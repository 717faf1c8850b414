// Rule R1 on a real model (XCACHE_TEST_MODEL): the same bits whatever the
// chunks, batches, forks, resumes, threads and instruction set.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/codec.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/engine_property.h"

namespace xcache::testing {
namespace {

class CpuEngineModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("XCACHE_TEST_MODEL");
    if (path == nullptr || *path == '\0') {
      GTEST_SKIP() << "XCACHE_TEST_MODEL names no model";
    }
    auto model = Model::Load(path);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  std::unique_ptr<Engine> Make(const std::string& isa, int threads) const {
    EngineOptions options;
    options.device = "cpu";
    options.isa = isa;
    options.num_threads = threads;
    // Profiles of a real model take a while: made once for all tests.
    options.profile_dir = ::testing::TempDir();
    auto engine = CreateEngine(model_, options, {});
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  std::vector<TokenId> Tokens(int n, uint32_t seed) const {
    return RandomTokens(n, model_->hparams().vocab_size, seed);
  }

  std::shared_ptr<const Model> model_;
};

TEST_F(CpuEngineModelTest, ResultsDependOnTokensAndCodecAlone) {
  const auto reference_engine = Make("", 1);
  ASSERT_NE(reference_engine, nullptr);
  for (const std::string& spec : CodecNamesWithoutCalibration()) {
    const auto codec = reference_engine->OpenCodec(spec, {});
    ASSERT_TRUE(codec.ok()) << codec.status();
    std::vector<TokenId> a = Tokens(140, 1), b = Tokens(100, 2);
    std::copy_n(a.begin(), 70, b.begin());
    std::vector<Reference> texts;
    texts.push_back(ComputeReference(*reference_engine, **codec, std::move(a)));
    texts.push_back(ComputeReference(*reference_engine, **codec, std::move(b)));
    for (int threads : {1, 2, 3}) {
      const auto engine = Make("", threads);
      ASSERT_NE(engine, nullptr);
      const auto same_codec = engine->OpenCodec(spec, {});
      ASSERT_TRUE(same_codec.ok()) << same_codec.status();
      RunRandomActions(*engine, **same_codec, texts, 20,
                       static_cast<uint32_t>(threads), 0.0f);
      ASSERT_FALSE(HasFailure()) << spec << ", " << threads << " threads";
    }
  }
}

TEST_F(CpuEngineModelTest, InstructionSetsAgreeBitForBit) {
  const auto best = Make("", 2);
  ASSERT_NE(best, nullptr);
  for (const std::string& spec : CodecNamesWithoutCalibration()) {
    const auto codec = best->OpenCodec(spec, {});
    ASSERT_TRUE(codec.ok()) << codec.status();
    const std::vector<TokenId> tokens = Tokens(80, 3);
    std::vector<Reference> expected;
    expected.push_back(ComputeReference(*best, **codec, tokens));
    for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
      if (!IsaSupported(isa)) continue;
      const auto engine = Make(std::string(IsaName(isa)), 2);
      ASSERT_NE(engine, nullptr);
      const auto same_codec = engine->OpenCodec(spec, {});
      ASSERT_TRUE(same_codec.ok()) << same_codec.status();
      // The scalar kernels take minutes for a whole block of a real model, so
      // they compute the end of it only, on what was resumed.
      const size_t resumed = isa == Isa::kRef ? 1 : 0;
      std::vector<RematJob> jobs(resumed);
      std::vector<KvBlockRef> blocks;
      if (resumed > 0) {
        jobs[0] = {0, expected[0].pages[0],
                   std::span(tokens).first(kBlockTokens)};
        auto remat = engine->Remat(**same_codec, jobs);
        ASSERT_TRUE(remat[0].ok()) << remat[0].status();
        blocks.push_back(*remat[0]);
      }
      auto sequence = engine->NewSequence(
          **same_codec, std::span(tokens).first(resumed * kBlockTokens),
          blocks);
      ASSERT_TRUE(sequence.ok()) << sequence.status();
      const size_t end = resumed > 0 ? kBlockTokens + 2 : tokens.size();
      for (size_t at = resumed * kBlockTokens; at < end;) {
        StepItem item;
        item.sequence = sequence->get();
        item.tokens = std::span(tokens).subspan(
            at, std::min<size_t>(kBlockTokens - at % kBlockTokens, end - at));
        item.logits_mode = LogitsMode::kLast;
        ASSERT_TRUE(engine->Step({&item, 1}).ok());
        at += item.tokens.size();
        ExpectSameLogits(item.logits, expected[0].logits[at - 1], 0.0f,
                         std::string(IsaName(isa)) + ", " + spec +
                             ", position " + std::to_string(at - 1));
      }
    }
  }
}

}  // namespace
}  // namespace xcache::testing
