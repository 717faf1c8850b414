#include "server/grpc/chat_tools.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"
#include "server/grpc/convert.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;
using Kind = GrammarSpec::Kind;

constexpr char kSchema[] =
    R"({"type":"object","properties":{"z":{"type":"integer"},"a":{}}})";

v1::ChatRequest Request() {
  v1::ChatRequest request;
  v1::Message* const message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("hi");
  v1::Tool* tool = request.add_tools();
  tool->set_name("look");
  tool->set_description("Looks \"at\", \xE2\x98\x80.");
  tool->set_parameters(kSchema);
  tool->set_strict(true);
  request.add_tools()->set_name("ask");
  return request;
}

TEST(ToToolsTest, TextsAreThoseOfTheHttpDoor) {
  GrammarSpec grammar;
  const auto tools = ToTools(Request(), &grammar);
  ASSERT_TRUE(tools.ok()) << tools.status();
  ASSERT_EQ(tools->size(), 2u);
  EXPECT_EQ((*tools)[0].text,
            "{\"type\": \"function\", \"function\": {\"name\": \"look\", "
            "\"description\": \"Looks \\\"at\\\", \xE2\x98\x80.\", "
            "\"parameters\": {\"type\": \"object\", \"properties\": {\"z\": "
            "{\"type\": \"integer\"}, \"a\": {}}}, \"strict\": true}}");
  EXPECT_EQ((*tools)[0].schema, kSchema);
  EXPECT_EQ((*tools)[1].text,
            "{\"type\": \"function\", \"function\": {\"name\": \"ask\"}}");
  EXPECT_EQ((*tools)[1].schema, "{\"type\":\"object\"}");
  EXPECT_EQ(grammar, *CallGrammar("tools", {}, *tools));
}

TEST(ToToolsTest, EveryChoice) {
  v1::ChatRequest request = Request();
  GrammarSpec grammar;
  request.mutable_tool_choice()->set_mode(v1::ToolChoice::MODE_REQUIRED);
  request.set_parallel_tool_calls(false);
  auto tools = ToTools(request, &grammar);
  ASSERT_TRUE(tools.ok()) << tools.status();
  EXPECT_EQ(
      grammar,
      *CallGrammar("tools", {.required = true, .parallel = false}, *tools));
  request.clear_parallel_tool_calls();
  request.mutable_tool_choice()->set_name("ask");
  tools = ToTools(request, &grammar);
  ASSERT_TRUE(tools.ok());
  EXPECT_EQ(grammar,
            *CallGrammar("tools", {.required = true, .name = "ask"}, *tools));
  for (const auto mode :
       {v1::ToolChoice::MODE_UNSPECIFIED, v1::ToolChoice::MODE_AUTO}) {
    request.mutable_tool_choice()->set_mode(mode);
    grammar = GrammarSpec();
    tools = ToTools(request, &grammar);
    ASSERT_TRUE(tools.ok());
    EXPECT_EQ(grammar, *CallGrammar("tools", {}, *tools));
  }
  request.mutable_tool_choice()->set_mode(v1::ToolChoice::MODE_NONE);
  grammar = {.kind = Kind::kRegex, .text = "a", .choices = {}, .tagged = {}};
  tools = ToTools(request, &grammar);
  ASSERT_TRUE(tools.ok());
  EXPECT_TRUE(tools->empty());
  EXPECT_EQ(grammar.kind, Kind::kRegex);
  request.clear_tools();
  request.clear_tool_choice();
  tools = ToTools(request, &grammar);
  ASSERT_TRUE(tools.ok());
  EXPECT_TRUE(tools->empty());
}

TEST(ToToolsTest, AFormatIsForWhatIsNoCall) {
  GrammarSpec grammar{
      .kind = Kind::kRegex, .text = "a", .choices = {}, .tagged = {}};
  ASSERT_TRUE(ToTools(Request(), &grammar).ok());
  EXPECT_EQ(grammar.kind, Kind::kTagged);
  EXPECT_EQ(grammar.tagged.otherwise, Kind::kRegex);
}

TEST(ToToolsTest, WhatIsWrongIsNamed) {
  using Change = std::function<void(v1::ChatRequest*)>;
  const auto parameters = [](const char* text) {
    return [text](v1::ChatRequest* r) {
      r->mutable_tools(0)->set_parameters(text);
    };
  };
  const std::vector<std::pair<std::string, Change>> cases = {
      {"tools[1].name must be",
       [](v1::ChatRequest* r) { r->mutable_tools(1)->set_name("a b"); }},
      {"tools[1].name must be",
       [](v1::ChatRequest* r) { r->mutable_tools(1)->clear_name(); }},
      {"tools[1].description must be UTF-8",
       [](v1::ChatRequest* r) {
         r->mutable_tools(1)->set_description("\xFF");
       }},
      {"tools[0].parameters must be a JSON schema", parameters("true")},
      {"tools[0].parameters must be a JSON schema", parameters("{")},
      {"tools[0].parameters must be a JSON schema", parameters("{} {}")},
      {"tools[0].parameters must be a JSON schema", parameters("[{}]")},
      {"tools[0].parameters must be a JSON schema", parameters(" ")},
      {"tools[0].parameters: schema: not", parameters(R"({"not":{}})")},
      {"tools must be at most 128",
       [](v1::ChatRequest* r) {
         for (int i = 0; i < 127; ++i) r->add_tools()->set_name("t");
       }},
      {"tool_choice must be one of the tools, not other",
       [](v1::ChatRequest* r) { r->mutable_tool_choice()->set_name("other"); }},
      {"tool_choice.name must be",
       [](v1::ChatRequest* r) { r->mutable_tool_choice()->set_name(""); }},
      {"tool_choice.mode must be",
       [](v1::ChatRequest* r) {
         r->mutable_tool_choice()->set_mode(
             static_cast<v1::ToolChoice::Mode>(9));
       }},
      {"without tools",
       [](v1::ChatRequest* r) {
         r->clear_tools();
         r->mutable_tool_choice()->set_mode(v1::ToolChoice::MODE_REQUIRED);
       }},
  };
  for (const auto& [words, change] : cases) {
    v1::ChatRequest request = Request();
    change(&request);
    GrammarSpec grammar;
    const absl::Status status = ToTools(request, &grammar).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << words;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
  // Nobody insists: any object.
  v1::ChatRequest request = Request();
  request.mutable_tools(0)->set_strict(false);
  request.mutable_tools(0)->set_parameters(R"({"not":{}})");
  GrammarSpec grammar;
  const auto tools = ToTools(request, &grammar);
  ASSERT_TRUE(tools.ok()) << tools.status();
  EXPECT_EQ((*tools)[0].schema, "{\"type\":\"object\"}");
}

v1::Message* AddMessage(v1::ChatRequest* request, v1::Role role,
                        const std::string& content) {
  v1::Message* const message = request->add_messages();
  message->set_role(role);
  message->set_content(content);
  return message;
}

TEST(ToMessagesTest, CallsAndResultsAreTexts) {
  v1::ChatRequest request;
  AddMessage(&request, v1::ROLE_USER, "go");
  v1::Message* const answer = AddMessage(&request, v1::ROLE_ASSISTANT, "Well.");
  answer->add_tool_calls()->set_name("f");
  answer->mutable_tool_calls(0)->set_arguments("{\"a\": 1}");
  answer->add_tool_calls()->set_name("g");
  AddMessage(&request, v1::ROLE_TOOL, "one");
  AddMessage(&request, v1::ROLE_TOOL, "two");
  const auto messages = ToMessages("messages", request.messages(), false);
  ASSERT_TRUE(messages.ok()) << messages.status();
  ASSERT_EQ(messages->size(), 3u);
  EXPECT_EQ((*messages)[1].content,
            "Well.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
            "1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", "
            "\"arguments\": {}}\n</tool_call>");
  EXPECT_EQ((*messages)[2].role, Role::kUser);
  EXPECT_EQ((*messages)[2].content,
            "<tool_response>\none\n</tool_response>\n"
            "<tool_response>\ntwo\n</tool_response>");
  AddMessage(&request, v1::ROLE_USER, "and?");
  AddMessage(&request, v1::ROLE_TOOL, "three");
  const auto more = ToMessages("messages", request.messages(), false);
  ASSERT_TRUE(more.ok());
  ASSERT_EQ(more->size(), 5u);
  EXPECT_EQ((*more)[3].content, "and?");
}

TEST(ToMessagesTest, CallsThatAreWrongAreNamed) {
  const auto refused = [](const v1::ChatRequest& request) {
    const absl::Status status =
        ToMessages("messages", request.messages(), false).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  v1::ChatRequest request;
  v1::Message* const answer = AddMessage(&request, v1::ROLE_ASSISTANT, "");
  answer->add_tool_calls()->set_name("a b");
  EXPECT_THAT(refused(request), HasSubstr("messages[0].tool_calls[0].name"));
  answer->mutable_tool_calls(0)->set_name("a");
  answer->mutable_tool_calls(0)->set_arguments("\xFF");
  EXPECT_THAT(refused(request),
              HasSubstr("messages[0].tool_calls[0].arguments must be UTF-8"));
  answer->mutable_tool_calls(0)->clear_arguments();
  answer->set_role(v1::ROLE_USER);
  EXPECT_THAT(refused(request), HasSubstr("messages[0].tool_calls must be"));
  answer->set_role(v1::ROLE_ASSISTANT);
  for (size_t i = 0; i < kMaxCalls; ++i) answer->add_tool_calls();
  EXPECT_THAT(refused(request),
              HasSubstr("messages[0].tool_calls must be at most 128"));
  // Each is small enough.
  answer->clear_tool_calls();
  answer->set_role(v1::ROLE_TOOL);
  answer->set_content(std::string(kMaxTextBytes / 2, 'x'));
  *request.add_messages() = *answer;
  EXPECT_THAT(refused(request), HasSubstr("messages must be at most"));
}

TEST(AnswerToProtoTest, PartsOfOneCallAreJoined) {
  using Part = AnswerPart::Kind;
  v1::ChatResponse out;
  ToProto({{Part::kThought, "hm", 0, ""},
           {Part::kText, "a", 0, ""},
           {Part::kText, "b", 0, ""},
           {Part::kCall, "f", 0, "id0"},
           {Part::kArguments, "{", 0, ""},
           {Part::kArguments, "}", 0, ""},
           {Part::kCall, "g", 1, "id1"}},
          &out);
  EXPECT_EQ(out.reasoning(), "hm");
  EXPECT_EQ(out.delta(), "ab");
  ASSERT_EQ(out.tool_calls_size(), 2);
  EXPECT_EQ(out.tool_calls(0).index(), 0u);
  EXPECT_EQ(out.tool_calls(0).id(), "id0");
  EXPECT_EQ(out.tool_calls(0).name(), "f");
  EXPECT_EQ(out.tool_calls(0).arguments(), "{}");
  EXPECT_EQ(out.tool_calls(1).index(), 1u);
  EXPECT_EQ(out.tool_calls(1).arguments(), "");
  v1::ChatResponse next;
  ToProto({{Part::kArguments, "[]", 1, ""}}, &next);
  ASSERT_EQ(next.tool_calls_size(), 1);
  EXPECT_EQ(next.tool_calls(0).index(), 1u);
  EXPECT_EQ(next.tool_calls(0).name(), "");
}

}  // namespace
}  // namespace xcache
