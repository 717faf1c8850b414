// xquant-tc through the CPU engine, with a made-up profile: rule R1 bit for bit
// on every instruction set, pages of any size, damage.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/page.h"
#include "engine/xcache/profile.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/engine/engine_property.h"
#include "tests/unit/engine/xcache/transform_test_util.h"

namespace xcache::testing {
namespace {

class TransformEngineTest : public ::testing::Test {
 protected:
  TransformEngineTest() : dir_(::testing::TempDir() + "transform_engine_test") {
    TinyModelOptions options;
    options.num_layers = 4;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    model_ = MakeTinyModel(options);
    const HyperParams& h = model_->hparams();
    const CodecShape shape{h.num_layers, h.d_model, h.kv_dim()};
    EXPECT_TRUE(Profile::Save(*NewTransformProfile(MakeUpTransform(shape, 2),
                                                   model_->fingerprint()),
                              dir_, model_->fingerprint())
                    .ok());
  }
  ~TransformEngineTest() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<Engine> Make(Isa isa, int threads) const {
    EngineOptions options;
    options.device = "cpu";
    options.isa = std::string(IsaName(isa));
    options.num_threads = threads;
    options.profile_dir = dir_;
    auto engine = CreateEngine(model_, options, {});
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  const std::string dir_;
  std::shared_ptr<const Model> model_;
};

TEST_F(TransformEngineTest, ResultsDependOnTokensAlone) {
  uint32_t seed = 1;
  for (const char* spec :
       {"xquant-tc:rate=high", "xquant-tc", "xquant-tc:rate=small"}) {
    const auto engine = Make(*ChooseIsa(""), 2);
    const auto codec = engine->OpenCodec(spec, {});
    ASSERT_TRUE(codec.ok()) << codec.status();
    std::vector<Reference> texts;
    for (uint32_t text = 0; text < 3; ++text) {
      texts.push_back(ComputeReference(
          *engine, **codec,
          RandomTokens(300, engine->info().vocab_size, 10 + text)));
    }
    RunRandomActions(*engine, **codec, texts, 40, seed++, 0.0f);
    if (HasFailure()) return;
  }
}

TEST_F(TransformEngineTest, InstructionSetsAndThreadCountsAgreeBitForBit) {
  const std::vector<TokenId> tokens =
      RandomTokens(150, model_->hparams().vocab_size, 5);
  const auto reference = [&](Isa isa, int threads) {
    const auto engine = Make(isa, threads);
    return ComputeReference(*engine, **engine->OpenCodec("xquant-tc", {}),
                            tokens);
  };
  const Reference expected = reference(Isa::kRef, 1);
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    for (int threads : {1, 3}) {
      const Reference other = reference(isa, threads);
      EXPECT_TRUE(other.pages == expected.pages) << IsaName(isa);
      EXPECT_TRUE(other.logits == expected.logits) << IsaName(isa);
    }
  }
}

TEST_F(TransformEngineTest, PagesDifferInSizeAndSayWhatTheyAre) {
  const auto engine = Make(*ChooseIsa(""), 1);
  const CodecHandle& codec = **engine->OpenCodec("xquant-tc", {});
  const Reference text = ComputeReference(
      *engine, codec, RandomTokens(256, model_->hparams().vocab_size, 6));
  bool differ = false;
  for (const std::string& page : text.pages) {
    const auto view = ParsePage(page);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(view->version, kVariablePageFormatVersion);
    EXPECT_EQ(PageBytes(view->payload.size()), page.size());
    differ |= page.size() != text.pages[0].size();
  }
  EXPECT_TRUE(differ);
  EXPECT_GT(codec.page_bytes(), PageBytes(0));
}

// Also where a checksum fits the damage: then another value may come back, but
// nothing crashes, and what cannot be is refused.
TEST_F(TransformEngineTest, DamagedPagesAreDataLoss) {
  const auto engine = Make(*ChooseIsa(""), 1);
  const CodecHandle& codec = **engine->OpenCodec("xquant-tc", {});
  const Reference text = ComputeReference(
      *engine, codec, RandomTokens(128, model_->hparams().vocab_size, 7));
  const std::string& page = text.pages[1];
  const auto remat = [&](std::string_view bytes) {
    const RematJob job{1, bytes, std::span(text.tokens).subspan(64, 64)};
    return engine->Remat(codec, {&job, 1})[0].status();
  };
  EXPECT_TRUE(remat(page).ok());
  for (size_t i = 0; i < page.size(); i += 7) {
    std::string damaged = page;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_EQ(remat(damaged).code(), absl::StatusCode::kDataLoss) << i;
    EXPECT_EQ(remat(page.substr(0, i)).code(), absl::StatusCode::kDataLoss);
  }
  size_t found = 0, tried = 0;
  const size_t payload = page.size() - 4 - ParsePage(page)->payload.size();
  for (size_t i = payload; i < page.size() - 4; i += 11, ++tried) {
    std::string damaged = page;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    FinishPage(damaged);
    found += remat(damaged).code() == absl::StatusCode::kDataLoss;
  }
  // Most others are bits of escapes, which then say another value; some make a
  // symbol its negative, which has as many slots.
  EXPECT_GT(found, tried * 7 / 8);
}

// Twice the profile: what was read, and what the kernels read.
TEST_F(TransformEngineTest, WhatItTakesFollowsFromTheProfilesFile) {
  const auto engine = Make(*ChooseIsa(""), 1);
  const auto bytes = engine->codec_bytes("xquant-tc:rate=high");
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  size_t file = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir_)) {
    file += entry.file_size();
  }
  EXPECT_GE(*bytes, 2 * file);
  EXPECT_LE(*bytes, 3 * file + (size_t{8} << 20));
  EngineOptions options;
  options.device = "cpu";
  const auto without = CreateEngine(model_, options, {});
  ASSERT_TRUE(without.ok());
  EXPECT_TRUE((*without)->codec_bytes("xquant-tc").ok());
}

TEST_F(TransformEngineTest, WithoutAProfileItSaysWhatMakesOne) {
  std::filesystem::remove_all(dir_);
  const auto engine = Make(*ChooseIsa(""), 1);
  const absl::Status status = engine->OpenCodec("xquant-tc", {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("xcache-calibrate"), absl::string_view::npos);
}

}  // namespace
}  // namespace xcache::testing
