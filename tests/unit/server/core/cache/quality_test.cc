#include "server/core/cache/quality.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/cache/codec_table.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

// SmolLM2-135M's shape, and the same with all K/V heads.
ModelInfo Shape(int n_kv_heads) {
  ModelInfo model;
  model.d_model = 576;
  model.n_heads = 9;
  model.n_kv_heads = n_kv_heads;
  model.head_dim = 64;
  return model;
}

TEST(QualityTest, ANameStandsForACodecOfTheModelsKind) {
  EXPECT_EQ(CodecOfChoice("lossless", Shape(3)), "kv-fp16");
  for (const Quality& quality : kQualities) {
    EXPECT_EQ(CodecOfChoice(quality.name, Shape(3)), quality.gqa_codec);
    EXPECT_EQ(CodecOfChoice(quality.name, Shape(9)), quality.mha_codec);
    // What a quality names is not again a quality.
    EXPECT_EQ(CodecOfChoice(quality.gqa_codec, Shape(3)), quality.gqa_codec);
  }
  EXPECT_NE(CodecOfChoice(kDefaultQuality, Shape(3)), kDefaultQuality);
}

TEST(QualityTest, ASpecStandsForItself) {
  EXPECT_EQ(CodecOfChoice("xquant:bits=3", Shape(3)), "xquant:bits=3");
  EXPECT_EQ(CodecOfChoice("Balanced", Shape(3)), "Balanced");
}

TEST(QualityTest, TheTableIsDocumented) {
  const char* root = std::getenv("XCACHE_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  std::ifstream in(absl::StrCat(root, "/server/CONFIGURATION.md"));
  const std::string page{std::istreambuf_iterator<char>(in), {}};
  for (const Quality& quality : kQualities) {
    EXPECT_THAT(page, HasSubstr("| `" + std::string(quality.name) + "` | `" +
                                std::string(quality.gqa_codec) + "` | `" +
                                std::string(quality.mha_codec) + "` |"));
  }
}

TEST(QualityTest, MhaFormsCostMoreOnNarrowKeysAndValues) {
  for (const char* spec : {"xquant", "xquant:bits=4", "xquant-cl:bits=2"}) {
    ASSERT_TRUE(CostOfMhaForm(spec, Shape(3)).has_value()) << spec;
    EXPECT_EQ(*CostOfMhaForm(spec, Shape(3)), 1.5);
    EXPECT_FALSE(CostOfMhaForm(spec, Shape(9)).has_value()) << spec;
  }
  for (const char* spec : {"xquant-gqa:bits=4", "xquant-cl-gqa", "kv-fp16"}) {
    EXPECT_FALSE(CostOfMhaForm(spec, Shape(3)).has_value()) << spec;
  }
}

// An engine of SmolLM2's shape that takes any spec.
class ShapedEngine final : public Engine {
 public:
  ShapedEngine() : info_(Shape(3)) { info_.kv_fp16_bytes_per_token = 23040; }
  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<const CodecHandle*> OpenCodec(std::string_view spec,
                                               const ProgressFn&) override {
    handle_.name = std::string(spec);
    return &handle_;
  }
  size_t kv_block_bytes() const override { return 0; }
  size_t sequence_bytes(const CodecHandle&) const override { return 0; }
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle&, std::span<const TokenId>, std::span<const KvBlockRef>,
      RematPolicy) override {
    return absl::UnimplementedError("it only opens codecs");
  }
  std::vector<absl::StatusOr<KvBlockRef>> Remat(
      const CodecHandle&, std::span<const RematJob>) override {
    return {};
  }
  absl::Status Step(std::span<StepItem>) override {
    return absl::UnimplementedError("it only opens codecs");
  }

 private:
  struct Handle final : CodecHandle {
    std::string_view spec() const override { return name; }
    const Digest& cache_fp() const override { return fingerprint; }
    size_t page_bytes() const override { return 64 * 9216; }
    std::string name;
    Digest fingerprint{};
  };
  ModelInfo info_;
  Handle handle_;
};

TEST(CodecTableTest, WarnsOnceOfWhatAnMhaFormCosts) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  ShapedEngine engine;
  MemoryBudget memory(1 << 20);
  CodecTable table(memory, 8);
  ASSERT_TRUE(table.Open(engine, "xquant-gqa:bits=4", {}).ok());
  EXPECT_EQ(log.str(), "");
  ASSERT_TRUE(table.Open(engine, "xquant:bits=4", {}).ok());
  const std::string once = log.str();
  ASSERT_TRUE(table.Open(engine, "xquant:bits=4", {}).ok());
  spdlog::set_default_logger(before);
  EXPECT_EQ(log.str(), once);
  EXPECT_THAT(once, HasSubstr("codec=\"xquant:bits=4\""));
  EXPECT_THAT(once, HasSubstr("stores_times_the_values_of_gqa_form=1.50"));
  EXPECT_THAT(once, HasSubstr("gqa_form=xquant-gqa"));
  EXPECT_THAT(once, HasSubstr("page_bytes_per_token=9216"));
  EXPECT_THAT(once, HasSubstr("kv_fp16_bytes_per_token=23040 ratio=2.50"));
}

}  // namespace
}  // namespace xcache
