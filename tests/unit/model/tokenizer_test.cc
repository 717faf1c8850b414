#include "engine/model/tokenizer.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::SpmVocabularyWriter;
using testing::TinyModelWriter;

// A tokenizer with the file that it borrows from.
struct Made {
  explicit Made(const GgufWriter& writer) : bytes(writer.Finish()) {
    auto parsed = GgufFile::Parse(
        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
        "test.gguf");
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    gguf = *std::move(parsed);
    auto created = Tokenizer::Create(*gguf);
    status = created.status();
    if (created.ok()) tokenizer = *std::move(created);
  }
  const Tokenizer* operator->() const { return tokenizer.get(); }

  std::string bytes;
  std::unique_ptr<const GgufFile> gguf;
  absl::Status status;
  std::unique_ptr<const Tokenizer> tokenizer;
};

// The first piece of SpmVocabularyWriter.
constexpr TokenId kFirstPiece = 259;
#define SP "\xe2\x96\x81"

TEST(TokenizerTest, TextSurvivesEncodingAndDecoding) {
  const Made tiny{TinyModelWriter({})};
  for (const std::string& text :
       std::vector<std::string>{"", " ", "Hello, world!", "  two\n\nlines\t",
                                "naïve 🙂 東京 ñ", "12345",
                                "<|im_start|>", std::string("a\0b", 3)}) {
    const auto ids = tiny->Encode(text);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(tiny->Decode(*ids), text);
  }
}

TEST(TokenizerTest, SpellingsOfSpecialTokensStayText) {
  const Made tiny{TinyModelWriter({})};
  const auto text = tiny->Encode("<|im_start|>user");
  ASSERT_TRUE(text.ok());
  for (TokenId id : *text) EXPECT_FALSE(tiny->IsSpecial(id));
  EXPECT_EQ(tiny->Decode(*text), "<|im_start|>user");
  const auto special = tiny->EncodeWithSpecial("<|im_start|>user");
  ASSERT_TRUE(special.ok());
  EXPECT_EQ(special->front(), 1);
  EXPECT_LT(special->size(), text->size());
}

TEST(TokenizerTest, SpecialTokensDecodeOnlyWhereAskedFor) {
  const Made tiny{TinyModelWriter({})};
  EXPECT_EQ(tiny->TokenBytes(1, /*with_special=*/false), "");
  EXPECT_EQ(tiny->TokenBytes(1, /*with_special=*/true), "<|im_start|>");
  EXPECT_EQ(tiny->TokenBytes(-1, true), "");
  EXPECT_EQ(tiny->TokenBytes(tiny->vocab_size(), true), "");
  EXPECT_EQ(tiny->SpecialId("<|im_end|>"), 2);
  EXPECT_EQ(tiny->SpecialId("the"), -1);
  EXPECT_FALSE(tiny->IsSpecial(-1));
}

TEST(TokenizerTest, EndOfGenerationIsMoreThanEos) {
  const Made tiny{TinyModelWriter({})};
  EXPECT_EQ(tiny->bos(), 1);
  EXPECT_EQ(tiny->eos(), 2);
  EXPECT_FALSE(tiny->add_bos());
  EXPECT_TRUE(tiny->IsEndOfGeneration(2));
  EXPECT_TRUE(tiny->IsEndOfGeneration(0));  // <|endoftext|>
  EXPECT_FALSE(tiny->IsEndOfGeneration(1));
  EXPECT_FALSE(tiny->IsEndOfGeneration(-1));

  GgufWriter writer = TinyModelWriter({});
  writer.SetUint32("tokenizer.ggml.eot_token_id", 7);
  EXPECT_TRUE(Made { writer } -> IsEndOfGeneration(7));
}

TEST(TokenizerTest, InvalidUtf8IsRefusedWithItsOffset) {
  const Made tiny{TinyModelWriter({})};
  const auto ids = tiny->Encode(
      "abc\xff"
      "def");
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("0xff"));
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("offset 3"));
  EXPECT_FALSE(tiny->EncodeWithSpecial("\xe2\x82").ok());
}

TEST(TokenizerTest, UserDefinedTokensAreFoundInText) {
  GgufWriter writer = SpmVocabularyWriter({"a", "b", SP});
  std::vector<std::string> tokens = {
      "<unk>", "<s>", "</s>", "a", "b", SP, "<tool>", "<tool>x", "<|marker|>"};
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  writer.SetInts("tokenizer.ggml.token_type",
                 std::vector<int32_t>{2, 3, 3, 1, 1, 1, 4, 4, 4});
  writer.SetFloats("tokenizer.ggml.scores", std::vector<float>(9, 0.0f));
  writer.SetBool("tokenizer.ggml.add_space_prefix", false);
  const Made made{writer};
  // The longest at a place; a marker of templates stays text,
  // of which this vocabulary knows the a.
  EXPECT_THAT(made->Encode("a<tool>b<tool>x").value(), ElementsAre(3, 6, 4, 7));
  EXPECT_THAT(made->Encode("<|marker|>").value(), ElementsAre(3));
  EXPECT_THAT(made->EncodeWithSpecial("<|marker|>").value(), ElementsAre(8));
  EXPECT_TRUE(made->IsSpecial(8));
  EXPECT_FALSE(made->IsSpecial(6));
}

TEST(SpmTokenizerTest, BestScoreMergesFirstAndThenTheLeftmost) {
  const Made made{
      SpmVocabularyWriter({"bc", "ab", "aa", "a", "b", "c", SP, SP "a"})};
  const TokenId p = kFirstPiece;
  ASSERT_TRUE(made.status.ok()) << made.status;
  // The space prefix: "▁abc" -> ▁ a bc, then "▁a".
  EXPECT_THAT(made->Encode("abc").value(), ElementsAre(p + 7, p + 0));
  EXPECT_THAT(made->Encode("aaa").value(), ElementsAre(p + 6, p + 2, p + 3));
  EXPECT_THAT(made->Encode("").value(), IsEmpty());
}

TEST(SpmTokenizerTest, CharactersWithoutATokenBecomeBytes) {
  const Made made{SpmVocabularyWriter({"a", SP})};
  const auto ids = made->Encode("aé\n").value();
  EXPECT_THAT(ids, ElementsAre(kFirstPiece + 1, kFirstPiece, 3 + 0xc3, 3 + 0xa9,
                               3 + 0x0a));
  EXPECT_EQ(made->Decode(ids), " aé\n");
}

TEST(SpmTokenizerTest, SpacePrefixFollowsSpecialTokens) {
  const Made made{SpmVocabularyWriter({"a", SP})};
  const TokenId a = kFirstPiece, space = kFirstPiece + 1;
  EXPECT_THAT(made->EncodeWithSpecial("<s>a</s>a").value(),
              ElementsAre(1, space, a, 2, space, a));
  EXPECT_TRUE(made->add_bos());
  EXPECT_EQ(made->bos(), 1);
}

TEST(TokenizerTest, UnknownFamiliesAreUnimplementedAndNameTheKnown) {
  GgufWriter writer = TinyModelWriter({});
  writer.SetString("tokenizer.ggml.pre", "tekken");
  Made made{writer};
  EXPECT_EQ(made.status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(made.status.message()),
              HasSubstr("gpt-2, smollm, llama-bpe, qwen2, found tekken"));
  writer.SetString("tokenizer.ggml.model", "bert");
  EXPECT_EQ(Made{writer}.status.code(), absl::StatusCode::kUnimplemented);
}

TEST(TokenizerTest, MalformedVocabulariesAreInvalid) {
  const auto status_of = [](auto change) {
    GgufWriter writer = TinyModelWriter({});
    change(&writer);
    return Made{writer}.status;
  };
  EXPECT_EQ(status_of([](GgufWriter* w) {
              w->Remove("tokenizer.ggml.model");
            }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](GgufWriter* w) {
              w->Remove("tokenizer.ggml.merges");
            }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      status_of([](GgufWriter* w) {
        w->SetInts("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1});
      }).code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](GgufWriter* w) {
              w->SetInts("tokenizer.ggml.token_type",
                         std::vector<int32_t>(384, 9));
            }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status_of([](GgufWriter* w) {
              w->SetUint32("tokenizer.ggml.bos_token_id", 384);
            }).code(),
            absl::StatusCode::kInvalidArgument);
  for (const char* merge : {"ab", " b", "a ", "\xff b"}) {
    EXPECT_EQ(status_of([merge](GgufWriter* w) {
                w->SetStrings("tokenizer.ggml.merges",
                              std::vector<std::string>{merge});
              }).code(),
              absl::StatusCode::kInvalidArgument)
        << merge;
  }
  GgufWriter nan = SpmVocabularyWriter({"a"});
  nan.SetFloats(
      "tokenizer.ggml.scores",
      std::vector<float>(260, std::numeric_limits<float>::quiet_NaN()));
  EXPECT_EQ(Made{nan}.status.code(), absl::StatusCode::kInvalidArgument);
}

TEST(BpeTokenizerTest, MergesThroughSymbolsThatAreNoTokens) {
  // "abc" is a token, "ab" on the way to it is not.
  GgufWriter writer = TinyModelWriter({.vocab_size = 259});
  auto model = testing::MakeTinyModel({.vocab_size = 259});
  std::vector<std::string> tokens = std::get<std::vector<std::string>>(
      model->gguf().metadata().find("tokenizer.ggml.tokens")->second);
  tokens.push_back("abc");
  std::vector<int32_t> types(tokens.size(), 1);
  types[0] = types[1] = types[2] = 3;
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  writer.SetInts("tokenizer.ggml.token_type", types);
  writer.SetStrings("tokenizer.ggml.merges",
                    std::vector<std::string>{"a b", "ab c"});
  const Made made{writer};
  ASSERT_TRUE(made.status.ok()) << made.status;
  EXPECT_THAT(made->Encode("abc").value(), ElementsAre(259));
  const auto ab = made->Encode("ab").value();
  EXPECT_EQ(ab.size(), 2u);
  EXPECT_EQ(made->Decode(ab), "ab");
}

TEST(TokenizerTest, LongRunsOfOneKindTakeLinearTime) {
  // Quadratic splitting or merging would take hours here.
  const Made tiny{TinyModelWriter({})};
  const Made spm{SpmVocabularyWriter({SP, "aa", "aaaa", "a", SP SP})};
  for (const char c : {'a', ' ', '\n', '0', '.'}) {
    const std::string text(300'000, c);
    const auto ids = tiny->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(tiny->Decode(*ids), text);
    ASSERT_TRUE(spm->Encode(text).ok());
  }
}

}  // namespace
}  // namespace xcache
