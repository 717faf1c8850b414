#include "server/http/responses_request.h"

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/http/exchange.h"
#include "server/http/json_body.h"
#include "server/http/response_output.h"
#include "server/http/stored_responses.h"

namespace xcache {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

absl::StatusOr<ResponseRequest> Parse(const json& more) {
  json body = {{"input", "hi"}};
  body.update(more);
  return ToResponseRequest(body, 100);
}

std::string FieldRefused(const json& more) {
  const absl::Status status = Parse(more).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << more;
  return FieldOf(status);
}

TEST(ResponseRequestTest, TextsAndItems) {
  const auto text = Parse(json::object());
  ASSERT_TRUE(text.ok()) << text.status();
  ASSERT_EQ(text->input.size(), 1u);
  EXPECT_EQ(text->input[0].content, "hi");
  EXPECT_TRUE(text->store);
  EXPECT_FALSE(text->instructions.has_value());
  EXPECT_EQ(text->options.max_tokens, std::numeric_limits<int64_t>::max());
  const auto items =
      Parse({{"input",
              {{{"role", "developer"}, {"content", "a"}},
               {{"type", "message"},
                {"role", "assistant"},
                {"id", "msg_1"},
                {"content", {{{"type", "output_text"}, {"text", "b"}}}}},
               {{"role", "user"},
                {"content",
                 {{{"type", "input_text"}, {"text", "c"}},
                  {{"type", "text"}, {"text", "d"}}}}}}},
             {"instructions", ""},
             {"conversation", {{"id", "conv_1"}}},
             {"max_output_tokens", 5},
             {"metadata", {{"k", "v"}}},
             {"include", {"message.output_text.logprobs", "x"}},
             {"store", false}});
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->input.size(), 3u);
  EXPECT_EQ(items->input[0].role, Role::kSystem);
  EXPECT_EQ(items->input[1].content, "b");
  EXPECT_EQ(items->input[2].content, "cd");
  EXPECT_EQ(items->instructions, "");
  EXPECT_EQ(items->conversation, "conv_1");
  EXPECT_EQ(items->options.max_tokens, 5);
  EXPECT_EQ(items->options.num_logprobs, 1);
  EXPECT_FALSE(items->store);
  EXPECT_EQ(items->echo["metadata"]["k"], "v");
}

TEST(ResponseRequestTest, FormatsAreHeldToAndToldAgain) {
  const json format = {
      {"type", "json_schema"}, {"name", "n"}, {"schema", {{"type", "object"}}}};
  const auto request =
      ToResponseRequest({{"input", "hi"}, {"text", {{"format", format}}}}, 100);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->options.grammar.kind, GrammarSpec::Kind::kJsonSchema);
  EXPECT_EQ(request->options.grammar.text, R"({"type":"object"})");
  EXPECT_EQ(request->echo["text"]["format"], format);
}

TEST(ResponseRequestTest, WhatIsWrongIsNamed) {
  EXPECT_EQ(FieldRefused({{"input", nullptr}}), "input");
  EXPECT_EQ(FieldRefused({{"input", json::array()}}), "input");
  EXPECT_EQ(FieldRefused({{"input", {1}}}), "input[0]");
  EXPECT_EQ(FieldRefused({{"input", {{{"type", "item_reference"}}}}}),
            "input[0].type");
  EXPECT_EQ(FieldRefused({{"input", {{{"role", "user"}}}}}),
            "input[0].content");
  EXPECT_EQ(FieldRefused({{"input", "\xff"}}), "input");
  EXPECT_EQ(FieldRefused({{"instructions", 1}}), "instructions");
  EXPECT_EQ(FieldRefused({{"store", "no"}}), "store");
  EXPECT_EQ(FieldRefused({{"previous_response_id", 1}}),
            "previous_response_id");
  EXPECT_EQ(FieldRefused({{"previous_response_id", std::string(300, 'a')}}),
            "previous_response_id");
  EXPECT_EQ(FieldRefused({{"conversation", json::object()}}), "conversation");
  EXPECT_EQ(
      FieldRefused({{"conversation", "a"}, {"previous_response_id", "b"}}),
      "previous_response_id");
  EXPECT_EQ(FieldRefused({{"background", true}}), "background");
  EXPECT_EQ(FieldRefused({{"truncation", "auto"}}), "truncation");
  EXPECT_EQ(FieldRefused({{"prompt", {{"id", "p"}}}}), "prompt");
  EXPECT_EQ(FieldRefused({{"tools", {1}}}), "tools[0]");
  EXPECT_EQ(FieldRefused({{"tools", 1}}), "tools");
  EXPECT_EQ(FieldRefused({{"tool_choice", "required"}}), "tool_choice");
  EXPECT_EQ(FieldRefused({{"text", {{"format", {{"type", "json"}}}}}}),
            "text.format");
  EXPECT_EQ(FieldRefused({{"n", 2}}), "n");
  EXPECT_EQ(FieldRefused({{"max_output_tokens", 0}}), "max_output_tokens");
  EXPECT_EQ(FieldRefused({{"metadata", {{"k", 1}}}}), "metadata");
  EXPECT_EQ(FieldRefused({{"metadata", {{"k", std::string(3000, 'a')}}}}),
            "metadata");
  EXPECT_EQ(FieldRefused({{"include", "x"}}), "include");
}

TEST(ConversationRequestTest, ItemsAndMetadata) {
  const auto empty = ToConversationRequest(json::object());
  ASSERT_TRUE(empty.ok());
  EXPECT_TRUE(empty->items.empty() && empty->metadata.is_null());
  json items = json::array();
  for (int i = 0; i < 21; ++i) {
    items.push_back({{"role", "user"}, {"content", "x"}});
  }
  EXPECT_EQ(FieldOf(ToConversationRequest({{"items", items}}).status()),
            "items");
  items.erase(items.begin());
  EXPECT_EQ(ToConversationRequest({{"items", items}})->items.size(), 20u);
}

TEST(PageRequestTest, QueriesAreRead) {
  const auto page = ToPageRequest("limit=5&order=asc&x&after=msg%5F1&=&y=");
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->limit, 5);
  EXPECT_FALSE(page->descending);
  EXPECT_EQ(page->after, "msg_1");
  EXPECT_EQ(ToPageRequest("")->limit, 20);
  for (const char* wrong : {"limit=0", "limit=101", "limit=x", "limit",
                            "order=up", "order", "limit=%ff"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ToPageRequest(wrong).status()))
        << wrong;
  }
}

TEST(PageRequestTest, ListsGoOnWhereTheyEnded) {
  std::vector<json> items;
  for (int i = 0; i < 5; ++i) items.push_back({{"id", std::to_string(i)}});
  const auto first = ListObject(items, {2, true, ""});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ((*first)["first_id"], "4");
  EXPECT_EQ((*first)["last_id"], "3");
  EXPECT_TRUE((*first)["has_more"]);
  const auto last = ListObject(items, {9, false, "2"});
  EXPECT_EQ((*last)["data"].size(), 2u);
  EXPECT_FALSE((*last)["has_more"]);
  EXPECT_FALSE(ListObject(items, {9, true, "x"}).ok());
}

TEST(ResponseIdTest, NamesASessionAndANote) {
  const auto name = ParseResponseId(ResponseId("0f", "chain_a_b"));
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name->name, "0f");
  EXPECT_EQ(name->session, "chain_a_b");
  for (const char* wrong : {"", "resp_", "resp_abc", "msg_a_b"}) {
    EXPECT_TRUE(absl::IsNotFound(ParseResponseId(wrong).status())) << wrong;
  }
}

TEST(TargetTest, PathAndQuery) {
  const auto split = [](std::string_view target) {
    std::string path, query;
    SplitTarget(target, &path, &query);
    return path + " " + query;
  };
  EXPECT_EQ(split("/v1/models?a=b#c"), "/v1/models a=b");
  EXPECT_EQ(split("/v1/models#c?d"), "/v1/models ");
  EXPECT_EQ(split("http://host/v1?a"), "/v1 a");
  EXPECT_EQ(split("https://host"), "/ ");
  EXPECT_EQ(split("/?"), "/ ");
  EXPECT_EQ(split(""), " ");
}

TEST(ResponseRequestTest, ToolsAndWhatTheyWereCalledWith) {
  const json tool = {{"type", "function"},
                     {"name", "f"},
                     {"strict", true},
                     {"parameters",
                      {{"type", "object"},
                       {"properties", {{"a", {{"type", "integer"}}}}},
                       {"required", {"a"}}}}};
  const auto request =
      Parse({{"tools", {tool}},
             {"tool_choice", {{"type", "function"}, {"name", "f"}}},
             {"input",
              {{{"role", "user"}, {"content", "go"}},
               {{"role", "assistant"}, {"content", "Well."}},
               {{"type", "function_call"},
                {"call_id", "c1"},
                {"name", "f"},
                {"arguments", "{\"a\":1}"}},
               {{"type", "function_call"}, {"name", "f"}},
               {{"type", "function_call_output"},
                {"call_id", "c1"},
                {"output", "one"}},
               {{"type", "function_call_output"},
                {"output", {{{"type", "input_text"}, {"text", "two"}}}}}}}});
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->tools.size(), 1u);
  EXPECT_EQ(request->tools[0].name, "f");
  EXPECT_EQ(json::parse(request->tools[0].text)["function"]["parameters"],
            tool["parameters"]);
  EXPECT_EQ(request->options.grammar.kind, GrammarSpec::Kind::kTagged);
  EXPECT_TRUE(request->options.grammar.tagged.once);
  EXPECT_EQ(request->echo["tools"], json::array({tool}));
  EXPECT_EQ(request->echo["tool_choice"]["name"], "f");
  ASSERT_EQ(request->input.size(), 3u);
  const std::vector<ToolCall> calls = {{"f", "{\"a\":1}"}, {"f", "{}"}};
  EXPECT_EQ(request->input[1].content, WithCalls("Well.", calls));
  EXPECT_EQ(request->input[2].role, Role::kUser);
  EXPECT_EQ(ReadResults(request->input[2].content),
            (std::vector<std::string>{"one", "two"}));
}

TEST(ResponseOutputTest, ItemsAreTextAndCallsInTheirOrder) {
  const std::vector<ToolCall> calls = {{"f", "{\"a\":1}"}, {"g", "{}"}};
  const std::string text = WithCalls("Well.", calls);
  const json output =
      OutputObject(ReadOutput(text, true), "n", "incomplete", json::array());
  ASSERT_EQ(output.size(), 3u);
  EXPECT_EQ(output[0]["id"], "msg_n");
  EXPECT_EQ(output[0]["content"][0]["text"], "Well.");
  EXPECT_EQ(output[0]["status"], "completed");
  EXPECT_EQ(output[1]["type"], "function_call");
  EXPECT_EQ(output[1]["id"], "fc_n_1");
  EXPECT_EQ(output[1]["call_id"], "call_n_1");
  EXPECT_EQ(output[1]["name"], "f");
  EXPECT_EQ(output[1]["arguments"], "{\"a\":1}");
  EXPECT_EQ(output[2]["name"], "g");
  EXPECT_EQ(output[2]["status"], "incomplete");
  const json plain =
      OutputObject(ReadOutput(text, false), "n", "completed", json::array());
  ASSERT_EQ(plain.size(), 1u);
  EXPECT_EQ(plain[0]["content"][0]["text"], text);
  EXPECT_EQ(ReadOutput("", true).size(), 1u);
}

}  // namespace
}  // namespace xcache
