// Token ids against those of llama.cpp, on the texts of tests/golden: ids are
// compared by digests, with the spellings of special tokens as text and as
// tokens. Vocabularies are not committed: a test without its file is skipped.
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/sha256.h"
#include "engine/model/tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

std::string GoldenPath(const std::string& name) {
  const char* source = std::getenv("XCACHE_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/tests/golden/" +
         name;
}

std::vector<std::string> ReadLines(const std::string& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string DigestOf(const std::vector<TokenId>& ids) {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) text += " ";
    text += std::to_string(ids[i]);
  }
  return ToHex(Sha256Of(text)).substr(0, 8);
}

void Compare(const GgufFile& gguf, const std::string& golden_name) {
  const auto tokenizer = Tokenizer::Create(gguf);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<std::string> lines = ReadLines(GoldenPath("lines.jsonl"));
  const std::vector<std::string> golden = ReadLines(GoldenPath(golden_name));
  ASSERT_GT(lines.size(), 3000u);
  ASSERT_EQ(golden.size(), lines.size() + 1);  // a header line
  int failures = 0;
  for (size_t i = 0; i < lines.size() && failures < 20; ++i) {
    const auto text = nlohmann::json::parse(lines[i]).get<std::string>();
    std::istringstream digests(golden[i + 1]);
    std::string plain_digest, special_digest;
    digests >> plain_digest >> special_digest;
    const auto plain = (*tokenizer)->Encode(text);
    const auto special = (*tokenizer)->EncodeWithSpecial(text);
    ASSERT_TRUE(plain.ok()) << plain.status();
    ASSERT_TRUE(special.ok()) << special.status();
    if (DigestOf(*plain) != plain_digest) {
      ++failures;
      ADD_FAILURE() << "text, line " << i + 1 << ": " << lines[i] << "\n  ids "
                    << ::testing::PrintToString(*plain);
    }
    // "-": llama.cpp is known to differ there, see make_tokens.py.
    if (special_digest != "-" && DigestOf(*special) != special_digest) {
      ++failures;
      ADD_FAILURE() << "with special tokens, line " << i + 1 << ": " << lines[i]
                    << "\n  ids " << ::testing::PrintToString(*special);
    }
    for (TokenId id : *plain) EXPECT_FALSE((*tokenizer)->IsSpecial(id));
  }
}

TEST(TokenizerGoldenTest, TinyModel) {
  Compare(testing::MakeTinyModel({})->gguf(), "tokens_tiny.txt");
}

TEST(TokenizerGoldenTest, RealModel) {
  const char* path = std::getenv("XCACHE_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_MODEL does not name a model";
  }
  const auto gguf = GgufFile::Open(path);
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  if ((*gguf)->GetString("tokenizer.ggml.pre").value_or("") != "smollm") {
    GTEST_SKIP() << path << " has another vocabulary than SmolLM2's";
  }
  Compare(**gguf, "tokens_smollm2.txt");
}

class VocabularyTest : public ::testing::TestWithParam<const char*> {};

TEST_P(VocabularyTest, IdsAreThoseOfLlamaCpp) {
  const char* dir = std::getenv("XCACHE_TEST_VOCAB_DIR");
  if (dir == nullptr || *dir == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_VOCAB_DIR does not name a folder of "
                    "vocabularies (tests/get_vocabularies.sh gets them)";
  }
  const auto gguf =
      GgufFile::Open(std::string(dir) + "/ggml-vocab-" + GetParam() + ".gguf");
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  Compare(**gguf, std::string("tokens_") + GetParam() + ".txt");
}

INSTANTIATE_TEST_SUITE_P(Families, VocabularyTest,
                         ::testing::Values("gpt-2", "llama-bpe", "qwen2",
                                           "llama-spm"));

}  // namespace
}  // namespace xcache
