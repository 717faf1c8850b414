#include "server/http/openai_request.h"

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/http/json_body.h"

namespace xcache {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kVocabSize = 100;

json Chat(json more = json::object()) {
  json body = {{"model", "m"},
               {"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  body.update(more);
  return body;
}

absl::Status Refusal(const json& more) {
  return ToChatCompletion(Chat(more), kVocabSize).status();
}

TEST(ChatCompletionTest, DefaultsAreOpenAis) {
  const auto chat = ToChatCompletion(Chat(), kVocabSize);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->model, "m");
  ASSERT_EQ(chat->messages.size(), 1u);
  EXPECT_EQ(chat->messages[0].content, "hi");
  EXPECT_EQ(chat->options.sampling.temperature, 1.0f);
  EXPECT_EQ(chat->options.sampling.top_p, 1.0f);
  EXPECT_EQ(chat->options.max_tokens, std::numeric_limits<int64_t>::max());
  EXPECT_FALSE(chat->options.seed.has_value());
  EXPECT_EQ(chat->options.num_logprobs, 0);
  EXPECT_EQ(chat->n, 1);
  EXPECT_FALSE(chat->stream);
}

TEST(ChatCompletionTest, EveryFieldArrives) {
  const auto chat =
      ToChatCompletion(Chat({{"temperature", 0.5},
                             {"top_p", 0.9},
                             {"top_k", 40},
                             {"min_p", 0.05},
                             {"presence_penalty", 1},
                             {"frequency_penalty", -0.5},
                             {"repetition_penalty", 1.1},
                             {"penalty_last_n", 128},
                             {"seed", -3},
                             {"n", 4},
                             {"max_tokens", 7},
                             {"max_completion_tokens", 9.0},
                             {"stop", {"a", "b"}},
                             {"logit_bias", {{"5", -100}, {"7", 2.5}}},
                             {"logprobs", true},
                             {"top_logprobs", 20},
                             {"ignore_eos", true},
                             {"stream", true},
                             {"stream_options", {{"include_usage", true}}}}),
                       kVocabSize);
  ASSERT_TRUE(chat.ok()) << chat.status();
  const SamplingParams& sampling = chat->options.sampling;
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_EQ(sampling.top_p, 0.9f);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.min_p, 0.05f);
  EXPECT_EQ(sampling.presence_penalty, 1.0f);
  EXPECT_EQ(sampling.frequency_penalty, -0.5f);
  EXPECT_EQ(sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(sampling.penalty_last_n, 128);
  EXPECT_THAT(sampling.logit_bias,
              ElementsAre(std::pair(5, -100.0f), std::pair(7, 2.5f)));
  EXPECT_EQ(chat->options.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(chat->n, 4);
  EXPECT_EQ(chat->options.max_tokens, 9);
  EXPECT_THAT(chat->options.stop, ElementsAre("a", "b"));
  EXPECT_EQ(chat->options.num_logprobs, 21);
  EXPECT_TRUE(chat->options.ignore_eos);
  EXPECT_TRUE(chat->stream && chat->include_usage && chat->logprobs);
}

TEST(ChatCompletionTest, NullIsWhatIsNotSaid) {
  json nulls = json::object();
  for (const char* name :
       {"temperature", "top_p", "n", "max_tokens", "stop", "seed", "tools",
        "tool_choice", "response_format", "logit_bias", "logprobs",
        "top_logprobs", "stream", "stream_options", "user", "model"}) {
    nulls[name] = nullptr;
  }
  const auto chat = ToChatCompletion(Chat(nulls), kVocabSize);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->model, "");
  EXPECT_EQ(chat->options.sampling.temperature, 1.0f);
}

TEST(ChatCompletionTest, WhatIsNotOfferedIsRefusedByItsName) {
  for (const auto& [field, value] :
       {std::pair<std::string, json>("tools", json::array({1})),
        {"functions", json::array({1})},
        {"tool_choice", "required"},
        {"function_call", json::object()},
        {"response_format", {{"type", "json_schema"}}},
        {"guided_json", json::object()},
        {"modalities", {"audio"}},
        {"audio", json::object()}}) {
    const absl::Status status = Refusal({{field, value}});
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << field;
    EXPECT_EQ(FieldOf(status), field);
    EXPECT_THAT(std::string(status.message()), HasSubstr("not offered"));
  }
  EXPECT_TRUE(Refusal({{"tools", json::array()},
                       {"tool_choice", "auto"},
                       {"response_format", {{"type", "text"}}}})
                  .ok());
}

TEST(ChatCompletionTest, RolesAndParts) {
  json body = Chat();
  body["messages"] = json::parse(R"([
    {"role": "developer", "content": "be"},
    {"role": "user", "name": "me", "content":
      [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}
  ])");
  const auto chat = ToChatCompletion(body, kVocabSize);
  ASSERT_TRUE(chat.ok()) << chat.status();
  ASSERT_EQ(chat->messages.size(), 3u);
  EXPECT_EQ(chat->messages[0].role, Role::kSystem);
  EXPECT_EQ(chat->messages[1].content, "ab");
  EXPECT_EQ(chat->messages[2].role, Role::kAssistant);
  body["messages"][2]["tool_calls"] = json::array({1});
  EXPECT_EQ(FieldOf(ToChatCompletion(body, kVocabSize).status()),
            "messages[2].tool_calls");
  body["messages"][1]["content"][1]["type"] = "image_url";
  EXPECT_EQ(FieldOf(ToChatCompletion(body, kVocabSize).status()),
            "messages[1].content[1].type");
}

TEST(TextCompletionTest, PromptsOfAllKinds) {
  const auto prompts = [](json prompt) {
    return ToTextCompletion({{"prompt", std::move(prompt)}}, kVocabSize);
  };
  EXPECT_EQ(prompts("a")->prompts.at(0).text, "a");
  EXPECT_TRUE(prompts("a")->prompts.at(0).is_text);
  EXPECT_THAT(prompts({1, 2})->prompts.at(0).tokens, ElementsAre(1, 2));
  EXPECT_EQ(prompts(json::array({"a", "b"}))->prompts.size(), 2u);
  EXPECT_EQ(prompts({{1, 2}, {3}})->prompts.size(), 2u);
  // Nothing is a prompt of no tokens: the core's to refuse.
  EXPECT_EQ(prompts(json::array())->prompts.size(), 1u);
  EXPECT_EQ(prompts("a")->options.max_tokens, 16);
  for (const json& bad :
       {json(1), json({1, kVocabSize}), json({1, -1}), json({1, "a"}),
        json::array({"a", 1}), json({1.5}), json(nullptr), json::object()}) {
    const auto refused = prompts(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(refused.status())) << bad;
    EXPECT_THAT(FieldOf(refused.status()), HasSubstr("prompt")) << bad;
  }
  EXPECT_FALSE(prompts(json(std::vector<std::string>(65, "a"))).ok());
}

TEST(TextCompletionTest, EchoAloneTakesNoToken) {
  const auto parse = [](json more) {
    json body = {{"prompt", "a"}};
    body.update(more);
    return ToTextCompletion(body, kVocabSize);
  };
  EXPECT_FALSE(parse({{"max_tokens", 0}}).ok());
  const auto echo = parse({{"max_tokens", 0}, {"echo", true}});
  ASSERT_TRUE(echo.ok()) << echo.status();
  EXPECT_FALSE(echo->generate);
  EXPECT_FALSE(parse({{"best_of", 3}}).ok());
  EXPECT_TRUE(parse({{"best_of", 2}, {"n", 2}}).ok());
  EXPECT_FALSE(parse({{"suffix", "x"}}).ok());
  EXPECT_EQ(parse({{"logprobs", 0}})->options.num_logprobs, 1);
  EXPECT_EQ(parse({{"logprobs", 5}})->options.num_logprobs, 6);
  EXPECT_FALSE(parse({{"logprobs", 21}}).ok());
}

absl::StatusOr<json> Parsed(const std::string& text) {
  return ParseJsonObject(text, CostOf(text));
}

TEST(JsonBodyTest, DepthIsCountedOutsideOfStringsAlone) {
  EXPECT_EQ(CostOf("{}").depth, 1);
  EXPECT_EQ(CostOf(R"({"a": [[1], "[[[[", "\"[["]})").depth, 3);
  EXPECT_EQ(CostOf("\"").depth, 0);
  EXPECT_EQ(CostOf("\"\\").depth, 0);
  EXPECT_TRUE(
      Parsed(R"({"a":)" + std::string(63, '[') + std::string(63, ']') + "}")
          .ok());
  const auto deep =
      Parsed(R"({"a":)" + std::string(64, '[') + std::string(64, ']') + "}");
  EXPECT_THAT(std::string(deep.status().message()), HasSubstr("65 levels"));
}

TEST(JsonBodyTest, TheCostIsAboveWhatATreeTakes) {
  // 16 bytes a value and more than 100 a member.
  EXPECT_GE(CostOf("[" + std::string(999, ',') + "]").bytes, 16'000);
  EXPECT_GE(CostOf(R"({"a":1,"b":2})").bytes, 2 * 100);
}

TEST(JsonBodyTest, WhatIsNoObjectIsSaidShortly) {
  for (const std::string text : {"", "nul", "[1]", "7", "{\"a\":}", "{}x"}) {
    const auto parsed = Parsed(text);
    ASSERT_TRUE(absl::IsInvalidArgument(parsed.status())) << text;
    EXPECT_LT(parsed.status().message().size(), 400u);
  }
}

}  // namespace
}  // namespace xcache
