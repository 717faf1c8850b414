#include "server/http/openai_request.h"

#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/http/json_body.h"
#include "server/http/json_order.h"
#include "server/http/tool_request.h"

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
                             {"speculate", "ngram"},
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
  EXPECT_EQ(chat->options.speculate, "ngram");
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
       {std::pair<std::string, json>("functions", json::array({1})),
        {"function_call", {{"name", "f"}}},
        {"response_format", {{"type", "structural_tag"}}},
        {"guided_grammar", "root ::= 'a'"},
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
            "messages[2].tool_calls[0].function");
  body["messages"][1]["content"][1]["type"] = "image_url";
  EXPECT_EQ(FieldOf(ToChatCompletion(body, kVocabSize).status()),
            "messages[1].content[1].type");
}

json Tool(const char* name, json parameters) {
  return {{"type", "function"},
          {"function", {{"name", name}, {"parameters", parameters}}}};
}

TEST(ChatCompletionTest, FormatsOfEveryName) {
  using Kind = GrammarSpec::Kind;
  const json schema = {{"type", "object"}};
  for (const auto& [field, value, kind, text] :
       {std::tuple<std::string, json, Kind, std::string>(
            "response_format", {{"type", "json_object"}}, Kind::kJsonObject,
            ""),
        {"response_format",
         {{"type", "json_schema"}, {"json_schema", {{"schema", schema}}}},
         Kind::kJsonSchema,
         schema.dump()},
        {"guided_json", schema, Kind::kJsonSchema, schema.dump()},
        {"guided_json", schema.dump(), Kind::kJsonSchema, schema.dump()},
        {"guided_regex", "a+", Kind::kRegex, "a+"},
        {"guided_choice", {"a", "b"}, Kind::kChoice, ""},
        {"structured_outputs", {{"regex", "b"}}, Kind::kRegex, "b"},
        {"structured_outputs", {{"json_object", true}}, Kind::kJsonObject, ""},
        {"structured_outputs", json::object(), Kind::kNone, ""}}) {
    const auto chat = ToChatCompletion(Chat({{field, value}}), kVocabSize);
    ASSERT_TRUE(chat.ok()) << chat.status();
    EXPECT_EQ(chat->options.grammar.kind, kind) << value;
    EXPECT_EQ(chat->options.grammar.text, text);
  }
  EXPECT_EQ(FieldOf(Refusal({{"guided_regex", "a"},
                             {"response_format", {{"type", "json_object"}}}})),
            "guided_regex");
}

TEST(ChatCompletionTest, ToolsAndWhatTheyAreHeldTo) {
  const json tools = {Tool("look", {{"type", "object"}}),
                      Tool("ask", {{"not", json::object()}})};
  const auto of = [&](json more) {
    more["tools"] = tools;
    return ToChatCompletion(Chat(more), kVocabSize);
  };
  auto chat = of({});
  ASSERT_TRUE(chat.ok()) << chat.status();
  ASSERT_EQ(chat->tools.size(), 2u);
  EXPECT_EQ(chat->tools[0].name, "look");
  EXPECT_EQ(chat->tools[0].text,
            "{\"function\": {\"name\": \"look\", \"parameters\": {\"type\": "
            "\"object\"}}, \"type\": \"function\"}");
  EXPECT_EQ(chat->options.grammar.kind, GrammarSpec::Kind::kTagged);
  EXPECT_EQ(chat->options.grammar.tagged.trigger, kCallTrigger);
  EXPECT_FALSE(chat->options.grammar.tagged.once);
  // What cannot be held to is left to the model.
  EXPECT_EQ(chat->options.grammar.tagged.tags[1].schema,
            "{\"type\":\"object\"}");
  chat = of({{"tool_choice", "none"}});
  ASSERT_TRUE(chat.ok());
  EXPECT_TRUE(chat->tools.empty());
  EXPECT_EQ(chat->options.grammar.kind, GrammarSpec::Kind::kNone);
  chat = of({{"tool_choice", "required"}, {"parallel_tool_calls", false}});
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->options.grammar.tagged.trigger, "");
  EXPECT_TRUE(chat->options.grammar.tagged.once);
  chat = of({{"tool_choice",
              {{"type", "function"}, {"function", {{"name", "ask"}}}}}});
  ASSERT_TRUE(chat.ok());
  ASSERT_EQ(chat->options.grammar.tagged.tags.size(), 1u);
  EXPECT_EQ(chat->options.grammar.tagged.tags[0].begin, CallBegin("ask"));
}

TEST(ChatCompletionTest, ToolsThatAreWrong) {
  for (const auto& [more, field] :
       {std::pair<json, std::string>({{"tools", 5}}, "tools"),
        {{{"tools", {1}}}, "tools[0]"},
        {{{"tools", {{{"type", "web_search"}}}}}, "tools[0].type"},
        {{{"tools", {{{"type", "function"}}}}}, "tools[0].function"},
        {{{"tools", {Tool("a b", {})}}}, "tools[0].function.name"},
        {{{"tools", {Tool("a", 5)}}}, "tools[0].function.parameters"},
        {{{"tools", json::array()}, {"tool_choice", "required"}},
         "tool_choice"},
        {{{"tools", {Tool("a", {})}}, {"tool_choice", "some"}}, "tool_choice"},
        {{{"tools", {Tool("a", {})}},
          {"tool_choice",
           {{"type", "function"}, {"function", {{"name", "b"}}}}}},
         "tool_choice.function.name"}}) {
    EXPECT_EQ(FieldOf(Refusal(more)), field) << more;
  }
  json strict = Tool("a", {{"not", json::object()}});
  strict["function"]["strict"] = true;
  EXPECT_EQ(FieldOf(Refusal({{"tools", {strict}}})),
            "tools[0].function.parameters");
}

TEST(ChatCompletionTest, CallsAndResultsAreTexts) {
  json body = Chat();
  body["messages"] = json::parse(R"([
    {"role": "user", "content": "go"},
    {"role": "assistant", "content": null, "tool_calls": [
      {"id": "1", "type": "function",
       "function": {"name": "f", "arguments": "{\"a\": 1}"}},
      {"id": "2", "type": "function", "function": {"name": "g"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "one"},
    {"role": "tool", "tool_call_id": "2",
     "content": [{"type": "text", "text": "two"}]}
  ])");
  const auto chat = ToChatCompletion(body, kVocabSize);
  ASSERT_TRUE(chat.ok()) << chat.status();
  ASSERT_EQ(chat->messages.size(), 3u);
  EXPECT_EQ(chat->messages[1].content,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
            "1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", "
            "\"arguments\": {}}\n</tool_call>");
  EXPECT_EQ(chat->messages[2].role, Role::kUser);
  EXPECT_EQ(chat->messages[2].content,
            "<tool_response>\none\n</tool_response>\n"
            "<tool_response>\ntwo\n</tool_response>");
}

TEST(JsonOrderTest, SchemasAndToolsKeepTheirOrder) {
  const std::string text = R"( { "z" : [1, {"a":"}]\""}] ,"tools":[
      {"type":"function","function":{"name":"f","b":1,"a":2}} , 5],
      "response_format":{"type":"json_schema","json_schema":
        {"schema":{"y":{"}":1}, "x":-1.5e3}}},"guided_json":{"b":1,"a":[]},
      "guided_json":{"c":1,"a":2}})";
  json body = json::parse(text);
  KeepOrders(text, &body);
  EXPECT_EQ(OrderedText(body["response_format"]["json_schema"]["schema"]),
            R"({"y":{"}":1}, "x":-1.5e3})");
  EXPECT_EQ(OrderedText(body["guided_json"]), R"({"c":1,"a":2})");
  EXPECT_EQ(OrderedText(body["tools"][0]),
            R"({"type":"function","function":{"name":"f","b":1,"a":2}})");
  EXPECT_EQ(body["tools"][1], 5);
  EXPECT_EQ(RawMember(text, "z"), R"([1, {"a":"}]\""}])");
  EXPECT_EQ(RawMember("[]", "z"), "");
  EXPECT_EQ(RawMember(R"({"a":1})", "z"), "");
  EXPECT_EQ(RawElements("{}").size(), 0u);
  // A name with escapes is not found; its value stays a tree.
  const std::string escaped = R"({"guided\u005fjson":{"b":1,"a":2}})";
  json tree = json::parse(escaped);
  KeepOrders(escaped, &tree);
  EXPECT_EQ(OrderedText(tree["guided_json"]), R"({"a":2,"b":1})");
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

TEST(EmbeddingTest, AnyFormOfInput) {
  constexpr int kWidth = 16;
  const auto read = [](json body) {
    return ToEmbedding(body, kVocabSize, kWidth);
  };
  auto one = read({{"input", "hi"}, {"model", "m"}});
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->model, "m");
  ASSERT_EQ(one->inputs.size(), 1u);
  EXPECT_EQ(one->inputs[0].text, "hi");
  EXPECT_FALSE(one->base64 || one->pooling.has_value() ||
               one->dimensions.has_value());
  auto several = read({{"input", {"a", "b"}},
                       {"pooling", "last"},
                       {"dimensions", kWidth},
                       {"encoding_format", "base64"}});
  ASSERT_TRUE(several.ok()) << several.status();
  ASSERT_EQ(several->inputs.size(), 2u);
  EXPECT_EQ(several->inputs[1].text, "b");
  EXPECT_EQ(several->pooling, Pooling::kLast);
  EXPECT_EQ(several->dimensions, kWidth);
  EXPECT_TRUE(several->base64);
  one = read({{"input", {1, 2}}});
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_THAT(one->inputs.at(0).tokens, ElementsAre(1, 2));
  several = read({{"input", {{1, 2}, {3}}}});
  ASSERT_TRUE(several.ok()) << several.status();
  EXPECT_THAT(several->inputs.at(1).tokens, ElementsAre(3));
  EXPECT_FALSE(read({{"input", "hi"}, {"dimensions", kWidth + 1}}).ok());
  EXPECT_FALSE(read({{"input", {1, kVocabSize}}}).ok());
}

}  // namespace
}  // namespace xcache
