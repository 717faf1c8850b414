#include "server/http/openai_response.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/server/grpc/fake_core.h"

namespace xcache {
namespace {

using nlohmann::json;

SampledToken Token(TokenId id, float logprob,
                   std::vector<TokenLogprob> top = {}) {
  SampledToken token;
  token.token = id;
  token.logprob = logprob;
  token.top = std::move(top);
  return token;
}

TEST(OpenAiResponseTest, ChatLogprobsLeaveTheEndTokenOut) {
  const testing::ByteTokenizer tokenizer;
  const std::vector<SampledToken> tokens = {
      Token('a', -0.5f, {{'a', -0.5f}, {0xC3, -1.0f}}), Token(257, -0.1f)};
  const json logprobs = ChatLogprobs(tokens, /*with_end=*/false, tokenizer);
  ASSERT_EQ(logprobs["content"].size(), 1u);
  const json& first = logprobs["content"][0];
  EXPECT_EQ(first["token"], "a");
  EXPECT_EQ(first["bytes"], json::array({97}));
  EXPECT_EQ(first["logprob"], -0.5);
  // A byte that is no character on its own is whole in "bytes".
  EXPECT_EQ(first["top_logprobs"][1]["token"], "\xEF\xBF\xBD");
  EXPECT_EQ(first["top_logprobs"][1]["bytes"], json::array({0xC3}));
  EXPECT_EQ(ChatLogprobs(tokens, true, tokenizer)["content"].size(), 2u);
}

TEST(OpenAiResponseTest, AnImpossibleTokenHasAFiniteLogprob) {
  const testing::ByteTokenizer tokenizer;
  const std::vector<SampledToken> tokens = {
      Token('a', -std::numeric_limits<float>::infinity())};
  EXPECT_EQ(ChatLogprobs(tokens, false, tokenizer)["content"][0]["logprob"],
            -9999.0);
}

TEST(OpenAiResponseTest, OffsetsOfTheOldShapeCountCharacters) {
  const testing::ByteTokenizer tokenizer;
  TextLogprobs logprobs;
  logprobs.AddFirst('x', tokenizer);
  // U+00FC in two tokens, then a letter.
  logprobs.Add(
      std::vector<SampledToken>{Token(0xC3, -1.0f), Token(0xBC, -2.0f)}, false,
      1, tokenizer);
  const json first = logprobs.Take();
  EXPECT_EQ(first["token_logprobs"], json::array({nullptr, -1.0, -2.0}));
  EXPECT_EQ(first["text_offset"], json::array({0, 1, 2}));
  EXPECT_TRUE(first["top_logprobs"][0].is_null());
  logprobs.Add(std::vector<SampledToken>{Token('y', -3.0f, {{'z', -0.1f}})},
               false, 1, tokenizer);
  const json second = logprobs.Take();
  EXPECT_EQ(second["text_offset"], json::array({2}));
  EXPECT_EQ(second["top_logprobs"][0], (json{{"y", -3.0}, {"z", json(-0.1f)}}));
}

TEST(OpenAiResponseTest, ChunksAreJson) {
  ObjectHead head{"id-1", "chat.completion.chunk", 7, "m\"x", "fp"};
  const std::string chunk = ChunkBegin(head) + "{\"index\":0}" + ChunkEnd(true);
  ASSERT_EQ(chunk.substr(0, 6), "data: ");
  ASSERT_EQ(chunk.substr(chunk.size() - 2), "\n\n");
  const json parsed = json::parse(chunk.substr(6));
  EXPECT_EQ(parsed["model"], "m\"x");
  EXPECT_EQ(parsed["choices"][0]["index"], 0);
  EXPECT_TRUE(parsed.contains("usage") && parsed["usage"].is_null());
  EXPECT_EQ(ChunkEnd(false).find("usage"), std::string::npos);
}

}  // namespace
}  // namespace xcache
