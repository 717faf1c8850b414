// Perplexity on real text, against llama.cpp's on the same windows. Needs
// XCACHE_TEST_MODEL and XCACHE_TEST_TEXT, which must be those that
// tests/golden/perplexity_smollm2.json was made of.
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/sha256.h"
#include "engine/engine_factory.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/eval/evaluate.h"

namespace xcache {
namespace {

// Windows of the golden file that are run here; xcache-eval runs more.
constexpr size_t kWindows = 3;

std::string Contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(PerplexityTest, IsLlamaCppsAndFourBitsCostAtMostOnePercent) {
  const char* source = std::getenv("XCACHE_SOURCE_DIR");
  const char* model_path = std::getenv("XCACHE_TEST_MODEL");
  const char* text_path = std::getenv("XCACHE_TEST_TEXT");
  if (model_path == nullptr || *model_path == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_MODEL names no model";
  }
  if (text_path == nullptr || *text_path == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_TEXT names no text (tests/eval/eval_text.py)";
  }
  ASSERT_NE(source, nullptr);
  const auto golden = nlohmann::json::parse(
      Contents(absl::StrCat(source, "/tests/golden/perplexity_smollm2.json")));
  const std::string text = Contents(text_path);
  if (ToHex(Sha256Of(text)) != golden["text_sha256"].get<std::string>() ||
      ToHex(Sha256Of(Contents(model_path))) !=
          golden["model_sha256"].get<std::string>()) {
    GTEST_SKIP() << "the golden perplexity is of another model or text";
  }

  auto model = Model::Load(model_path);
  ASSERT_TRUE(model.ok()) << model.status();
  auto tokenizer = Tokenizer::Create((*model)->gguf());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode(text);
  ASSERT_TRUE(ids.ok()) << ids.status();
  const auto window = golden["window"].get<size_t>();
  std::vector<std::vector<TokenId>> windows;
  double expected_nll = 0.0;
  for (size_t i = 0; i < kWindows; ++i) {
    const auto begin = ids->begin() + static_cast<ptrdiff_t>(i * window);
    windows.emplace_back(begin, begin + static_cast<ptrdiff_t>(window));
    expected_nll += golden["nll"][i].get<double>() / kWindows;
  }
  EngineOptions options;
  options.profile_dir = ::testing::TempDir();
  auto engine = CreateEngine(*model, options, nullptr);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto found =
      Evaluate(**engine, {"kv-fp16", "xquant-gqa:bits=4"}, windows, {});
  ASSERT_TRUE(found.ok()) << found.status();
  const double expected = std::exp(expected_nll);
  const double lossless = std::exp((*found)[0].nll());
  const double four_bits = std::exp((*found)[1].nll());
  EXPECT_NEAR(lossless, expected, 0.01 * expected);
  EXPECT_LT(four_bits, 1.01 * expected);
  EXPECT_LT((*found)[1].kl(), 0.01);
  EXPECT_GT((*found)[1].top1_agreement(), 0.93);
  EXPECT_GE((*found)[1].ratio(), 3.5);
}

}  // namespace
}  // namespace xcache
