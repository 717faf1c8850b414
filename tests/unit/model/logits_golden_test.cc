// The whole forward pass against independent implementations: log-probabilities
// of the demo model on a page of text, and of random models of each
// architecture, as llama.cpp has them (tests/golden/make_logits.py), and as
// double precision has them (tests/golden/make_exact_logits.py).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine_factory.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

struct Position {
  TokenId token = -1;
  std::vector<std::pair<TokenId, double>> top;  // id, log-probability
};

struct Golden {
  std::string model_sha256;
  std::string text;
  std::vector<Position> positions;
};

Golden ReadGolden(const std::string& name) {
  const char* source = std::getenv("XCACHE_SOURCE_DIR");
  const std::string dir =
      std::string(source != nullptr ? source : ".") + "/tests/golden/";
  Golden golden;
  std::stringstream text;
  text << std::ifstream(dir + "logits_text.txt").rdbuf();
  golden.text = text.str();
  std::ifstream in(dir + name);
  std::getline(in, golden.model_sha256);
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    Position position;
    fields >> position.token;
    TokenId id = 0;
    char colon = 0;
    double logp = 0;
    while (fields >> id >> colon >> logp) position.top.emplace_back(id, logp);
    golden.positions.push_back(std::move(position));
  }
  return golden;
}

// Log-probabilities of `logits` at the golden tokens.
std::vector<double> LogProbsAt(std::span<const float> logits,
                               const Position& position) {
  double most = logits[0];
  for (float l : logits) most = std::max(most, double{l});
  double sum = 0;
  for (float l : logits) sum += std::exp(double{l} - most);
  std::vector<double> out;
  for (const auto& [id, logp] : position.top) {
    out.push_back(logits[static_cast<size_t>(id)] - most - std::log(sum));
  }
  return out;
}

// KL divergence over the stored tokens, both sides renormalised to them.
double Divergence(const Position& golden, const std::vector<double>& ours) {
  double golden_mass = 0, our_mass = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    golden_mass += std::exp(golden.top[i].second);
    our_mass += std::exp(ours[i]);
  }
  double kl = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double p = std::exp(golden.top[i].second) / golden_mass;
    const double q = std::exp(ours[i]) / our_mass;
    kl += p * std::log(p / q);
  }
  return kl;
}

struct Reference {
  std::string name;
  std::string file;
  double least_agreement;                              // of the likeliest token
  double most_kl;                                      // mean, in nats
  std::optional<testing::TinyModelOptions> tiny = {};  // else the demo model
};

class LogitsGoldenTest : public ::testing::TestWithParam<Reference> {};

TEST_P(LogitsGoldenTest, LogProbabilitiesAreThoseOfTheReference) {
  const Golden golden = ReadGolden(GetParam().file);
  ASSERT_GE(golden.positions.size(), 160u);
  absl::StatusOr<std::shared_ptr<const Model>> model;
  if (GetParam().tiny.has_value()) {
    model = testing::MakeTinyModel(*GetParam().tiny);
    ASSERT_EQ(ToHex((*model)->fingerprint()), golden.model_sha256);
  } else {
    const char* path = std::getenv("XCACHE_TEST_MODEL");
    if (path == nullptr || *path == '\0') {
      GTEST_SKIP() << "XCACHE_TEST_MODEL does not name a model";
    }
    model = Model::Load(path);
    ASSERT_TRUE(model.ok()) << model.status();
    if (ToHex((*model)->fingerprint()) != golden.model_sha256) {
      GTEST_SKIP() << path << " is not the model of the golden data";
    }
  }
  const auto tokenizer = Tokenizer::Create((*model)->gguf());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::vector<TokenId> tokens = (*tokenizer)->Encode(golden.text).value();
  ASSERT_GE(tokens.size(), golden.positions.size());
  tokens.resize(golden.positions.size());

  const auto engine = CreateEngine(*model, {}, {});
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto codec = (*engine)->OpenCodec("kv-fp16", {});
  ASSERT_TRUE(codec.ok()) << codec.status();
  const auto sequence = (*engine)->NewSequence(**codec, {}, {});
  ASSERT_TRUE(sequence.ok()) << sequence.status();

  size_t agreements = 0;
  double kl_sum = 0, worst = 0;
  const auto vocab = static_cast<size_t>((*model)->hparams().vocab_size);
  for (size_t at = 0; at < tokens.size(); at += kBlockTokens) {
    const size_t n = std::min<size_t>(kBlockTokens, tokens.size() - at);
    StepItem item;
    item.sequence = sequence->get();
    item.tokens = std::span(tokens).subspan(at, n);
    item.logits_mode = LogitsMode::kAll;
    ASSERT_TRUE((*engine)->Step({&item, 1}).ok());
    for (size_t i = 0; i < n; ++i) {
      const Position& position = golden.positions[at + i];
      ASSERT_EQ(position.token, tokens[at + i]);
      const auto logits = item.logits.subspan(i * vocab, vocab);
      const auto best = std::ranges::max_element(logits) - logits.begin();
      if (best == position.top[0].first) ++agreements;
      const std::vector<double> ours = LogProbsAt(logits, position);
      kl_sum += Divergence(position, ours);
      worst = std::max(worst, std::fabs(ours[0] - position.top[0].second));
    }
  }
  const auto count = static_cast<double>(tokens.size());
  const double agreement = static_cast<double>(agreements) / count;
  RecordProperty("top1_agreement", std::to_string(agreement));
  RecordProperty("mean_kl", std::to_string(kl_sum / count));
  std::printf("top-1 agreement %.4f, mean KL %.6f, worst top-1 log-prob %.3f\n",
              agreement, kl_sum / count, worst);
  EXPECT_GE(agreement, GetParam().least_agreement);
  EXPECT_LE(kl_sum / count, GetParam().most_kl);
}

// llama.cpp rounds activations to 8 bits in blocks of 32 before each product,
// and this engine rounds them as well: both are that far from the exact result,
// and somewhat farther from each other. llama.cpp's own figures against double
// precision on this text are 0.954 and 0.0024; a wrong weight, pair order or
// norm is orders of magnitude away.
INSTANTIATE_TEST_SUITE_P(
    DemoModel, LogitsGoldenTest,
    ::testing::Values(Reference{"LlamaCpp", "logits_smollm2.txt", 0.93, 0.004},
                      Reference{"DoublePrecision", "logits_smollm2_exact.txt",
                                0.96, 0.003}),
    [](const auto& param_info) { return param_info.param.name; });

// Random models (tests/golden/make_tiny_logits.sh), longer than gemma3's
// window. Weights of 16 bits and more are computed with in nearly the same way,
// but for BF16, beside which llama.cpp rounds activations to BF16; in the
// others both round activations, and random layers make more of that than
// trained ones.
Reference Tiny(std::string_view architecture, GgufType type) {
  testing::TinyModelOptions options;
  options.architecture = architecture;
  options.num_layers = 7;
  options.window_pattern = 6;
  options.d_model = 256;  // K types take it
  options.n_heads = 4;
  options.n_kv_heads = 2;
  options.head_dim = 64;
  options.d_ff = 512;
  options.tied = false;
  options.matrix_type = type;
  const bool is_bf16 = type == GgufType::kBF16;
  const bool is_float =
      type == GgufType::kF32 || type == GgufType::kF16 || is_bf16;
  const std::string name =
      absl::StrCat(std::string(architecture), "_", static_cast<int>(type));
  return {name, absl::StrCat("logits_", name, ".txt"), is_float ? 0.95 : 0.85,
          is_bf16    ? 1e-3
          : is_float ? 2e-4
                     : 0.03,
          options};
}

std::vector<Reference> TinyModels() {
  std::vector<Reference> out = {Tiny("gemma3", GgufType::kF16),
                                Tiny("gemma3", GgufType::kQ6_K)};
  for (const char* architecture : {"qwen2", "qwen3"}) {
    for (const GgufType type :
         {GgufType::kF32, GgufType::kF16, GgufType::kBF16, GgufType::kQ4_0,
          GgufType::kQ4_1, GgufType::kQ5_0, GgufType::kQ5_1, GgufType::kQ8_0,
          GgufType::kQ4_K, GgufType::kQ5_K, GgufType::kQ6_K, GgufType::kQ2_K,
          GgufType::kQ3_K, GgufType::kIQ4_NL, GgufType::kIQ4_XS}) {
      out.push_back(Tiny(architecture, type));
    }
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(TinyModels, LogitsGoldenTest,
                         ::testing::ValuesIn(TinyModels()),
                         [](const auto& param_info) {
                           return param_info.param.name;
                         });

}  // namespace
}  // namespace xcache
