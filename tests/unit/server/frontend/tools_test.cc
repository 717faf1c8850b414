#include "server/frontend/tools.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/frontend/text_input.h"
#include "tests/unit/server/grpc/fake_core.h"

namespace xcache {
namespace {

using ::testing::AllOf;
using testing::FakeCore;
using ::testing::HasSubstr;

constexpr char kAnyObject[] = "{\"type\":\"object\"}";

const std::vector<ToolDef>& Tools() {
  static const std::vector<ToolDef> tools = {
      {"look", "{L}", kAnyObject},
      {"ask", "{A}", "{\"type\":\"object\",\"properties\":{}}"}};
  return tools;
}

void ExpectBad(const absl::Status& status, const std::string& field,
               const std::string& words) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(field), HasSubstr(words)));
}

TEST(ToolsTest, NamesAreLettersDigitsAndTwoMarks) {
  for (const std::string& good :
       {std::string("a"), std::string("Get_the-Weather9"),
        std::string(kMaxToolNameBytes, 'x')}) {
    EXPECT_TRUE(CheckToolName("f", good).ok()) << good;
  }
  for (const std::string& bad :
       {std::string(), std::string("a b"), std::string("a\"b"),
        std::string("\xC3\xA9"), std::string(kMaxToolNameBytes + 1, 'x')}) {
    ExpectBad(CheckToolName("f", bad), "f must be 1 to 64 letters", bad);
  }
  // What is long is not sent back.
  EXPECT_LT(CheckToolName("f", std::string(9999, 'x')).message().size(), 200u);
  EXPECT_TRUE(CheckNumTools("tools", kMaxTags).ok());
  ExpectBad(CheckNumTools("tools", kMaxTags + 1), "tools", "at most 128");
}

TEST(ToolsTest, JsonIsSpacedAsTemplatesHaveIt) {
  EXPECT_EQ(SpacedJson("{ \"a\\\" ,:\" :[1,\n2 ] ,\t\"b\":{}}"),
            "{\"a\\\" ,:\": [1, 2], \"b\": {}}");
}

TEST(ToolsTest, WhatCannotBeHeldToIsAnyObjectUnlessItIsStrict) {
  const std::string schema = R"({"type":"object","properties":{}})";
  const std::string unheld = R"({"not": {}})";
  EXPECT_EQ(*ArgumentsSchema("p", schema, true), schema);
  for (const char* any : {"", "{}", " { } "}) {
    EXPECT_EQ(*ArgumentsSchema("p", any, true), kAnyObject) << any;
  }
  EXPECT_EQ(*ArgumentsSchema("p", unheld, false), kAnyObject);
  ExpectBad(ArgumentsSchema("p", unheld, true).status(), "p: schema", "not");
}

TEST(ToolsTest, WhatIsChosenMustBeThere) {
  EXPECT_TRUE(CheckChoice("c", {}, {}).ok());
  EXPECT_TRUE(CheckChoice("c", {.none = true}, {}).ok());
  ExpectBad(CheckChoice("c", {.required = true}, {}), "c", "without tools");
  ExpectBad(CheckChoice("c", {.required = true, .name = "ask"}, {}), "c",
            "ask");
  EXPECT_TRUE(CheckChoice("c", {.required = true}, Tools()).ok());
  EXPECT_TRUE(
      CheckChoice("c", {.required = true, .name = "ask"}, Tools()).ok());
  ExpectBad(CheckChoice("c", {.required = true, .name = "as"}, Tools()), "c",
            "one of the tools, not as");
}

TEST(ToolsTest, CallsAreHeldToWhatIsChosen) {
  auto calls = CallGrammar("tools", {}, Tools());
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->kind, GrammarSpec::Kind::kTagged);
  EXPECT_EQ(calls->tagged.trigger, kCallTrigger);
  EXPECT_FALSE(calls->tagged.once);
  ASSERT_EQ(calls->tagged.tags.size(), 2u);
  EXPECT_EQ(calls->tagged.tags[1].begin, CallBegin("ask"));
  EXPECT_EQ(calls->tagged.tags[1].schema, Tools()[1].schema);
  calls = CallGrammar("tools", {.required = true, .parallel = false}, Tools());
  ASSERT_TRUE(calls.ok());
  EXPECT_EQ(calls->tagged.trigger, "");
  EXPECT_TRUE(calls->tagged.once);
  EXPECT_EQ(calls->tagged.tags.size(), 2u);
  calls = CallGrammar("tools", {.required = true, .name = "look"}, Tools());
  ASSERT_TRUE(calls.ok());
  EXPECT_TRUE(calls->tagged.once);
  ASSERT_EQ(calls->tagged.tags.size(), 1u);
  EXPECT_EQ(calls->tagged.tags[0].begin, CallBegin("look"));
  // Schemas that are small each, and large together.
  const std::string large = "{\"type\":\"object\",\"title\":\"" +
                            std::string(kMaxSchemaBytes / 2, 't') + "\"}";
  ExpectBad(
      CallGrammar("tools", {}, {{"a", "", large}, {"b", "", large}}).status(),
      "tools: schema", "bytes");
}

TEST(ToolsTest, AFormatIsForWhatIsNoCall) {
  GrammarSpec format;
  format.kind = GrammarSpec::Kind::kRegex;
  format.text = "a+";
  const GrammarSpec free = *CallGrammar("tools", {}, Tools());
  EXPECT_EQ(WithFormat(free, GrammarSpec()), free);
  const GrammarSpec either = WithFormat(free, format);
  EXPECT_EQ(either.tagged.trigger, "");
  EXPECT_EQ(either.tagged.otherwise, GrammarSpec::Kind::kRegex);
  EXPECT_EQ(either.text, "a+");
  const GrammarSpec must = *CallGrammar("tools", {.required = true}, Tools());
  EXPECT_EQ(WithFormat(must, format), must);
}

TEST(ToolsTest, ResultsBecomeOneMessage) {
  std::vector<ChatMessage> messages;
  std::vector<std::string> results;
  EXPECT_TRUE(FlushResults("messages", &results, &messages).ok());
  EXPECT_TRUE(messages.empty());
  results = {"one", "two"};
  EXPECT_TRUE(FlushResults("messages", &results, &messages).ok());
  EXPECT_TRUE(results.empty());
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].role, Role::kUser);
  EXPECT_EQ(ReadResults(messages[0].content),
            (std::vector<std::string>{"one", "two"}));
  results = {std::string(kMaxTextBytes, 'x')};
  ExpectBad(FlushResults("messages", &results, &messages), "messages", "bytes");
}

TEST(AddToolsTest, StandsInTheSystemPrompt) {
  const std::vector<ToolDef> tools = {{"f", "{F}", "{}"}};
  std::vector<ChatMessage> messages = {{Role::kUser, "hi"}};
  AddTools(tools, "Default.", true, &messages);
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].role, Role::kSystem);
  EXPECT_EQ(messages[0].content, WithTools("Default.", tools));
  EXPECT_THAT(messages[0].content,
              HasSubstr("XML tags:\n<tools>\n{F}\n</tools>\n\nFor each"));
  messages = {{Role::kSystem, "Mine."}, {Role::kUser, "hi"}};
  AddTools(tools, "Default.", true, &messages);
  EXPECT_EQ(messages[0].content, WithTools("Mine.", tools));
  messages = {{Role::kUser, "hi"}};
  AddTools(tools, "", false, &messages);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].content, WithTools("", tools) + "\n\nhi");
  AddTools({}, "Default.", true, &messages);
  EXPECT_EQ(messages.size(), 1u);
}

// What is asked of one before anything is rendered.
class FakeTemplate final : public ChatTemplate {
 public:
  explicit FakeTemplate(bool takes_system) : takes_system_(takes_system) {}
  std::string_view family() const override { return "fake"; }
  std::string_view default_system() const override { return "Default."; }
  bool takes_system() const override { return takes_system_; }
  absl::StatusOr<std::vector<TokenId>> RenderMessage(const ChatMessage&,
                                                     size_t) const override {
    return std::vector<TokenId>();
  }
  std::vector<TokenId> AssistantHeader() const override { return {}; }
  std::vector<TokenId> AssistantEnd(bool) const override { return {}; }
  absl::Status CheckOrder(const std::vector<Role>&,
                          const std::vector<ChatMessage>&) const override {
    return absl::OkStatus();
  }

 private:
  const bool takes_system_;
};

class SayToolsTest : public ::testing::Test {
 protected:
  // A turn of the session, which begins so.
  ChatTurn TurnOf(const std::string& id, std::vector<ChatMessage> messages) {
    CreateSessionOptions options;
    options.tenant = "t";
    options.id = id;
    options.messages = std::move(messages);
    EXPECT_TRUE(core_.CreateSession(options).ok());
    ChatTurn turn;
    turn.tenant = "t";
    turn.session_id = id;
    turn.messages = {{Role::kUser, "hi"}};
    return turn;
  }

  const FakeTemplate template_{true};
  const FakeTemplate without_system_{false};
  FakeCore core_;
};

TEST_F(SayToolsTest, AHistoryBeginsWithThem) {
  core_.set_chat_template(&template_);
  ChatTurn turn;
  turn.messages = {{Role::kUser, "hi"}};
  ASSERT_TRUE(SayTools(core_, {}, &turn).ok());
  EXPECT_EQ(turn.messages.size(), 1u);
  ASSERT_TRUE(SayTools(core_, Tools(), &turn).ok());
  ASSERT_EQ(turn.messages.size(), 2u);
  EXPECT_EQ(turn.messages[0].content, WithTools("Default.", Tools()));
  EXPECT_FALSE(turn.expected_turn.has_value());
}

TEST_F(SayToolsTest, ASessionThatHasThemStaysAsItIs) {
  core_.set_chat_template(&template_);
  ChatTurn turn = TurnOf("has", {{Role::kSystem, WithTools("Mine.", Tools())}});
  ASSERT_TRUE(SayTools(core_, Tools(), &turn).ok());
  EXPECT_FALSE(turn.system_prompt.has_value());
  EXPECT_EQ(turn.expected_turn, 0u);
  EXPECT_EQ(turn.messages.size(), 1u);
  // Others take their place.
  const std::vector<ToolDef> others = {Tools()[0]};
  ASSERT_TRUE(SayTools(core_, others, &turn).ok());
  EXPECT_EQ(turn.system_prompt, WithTools("Mine.", others));
  turn.system_prompt.reset();
  ASSERT_TRUE(SayTools(core_, {}, &turn).ok());
  EXPECT_FALSE(turn.system_prompt.has_value());
}

TEST_F(SayToolsTest, ASessionThatLacksThemBeginsAnew) {
  core_.set_chat_template(&template_);
  ChatTurn turn = TurnOf("plain", {{Role::kSystem, "Mine."}});
  turn.expected_turn = 7;
  ASSERT_TRUE(SayTools(core_, Tools(), &turn).ok());
  EXPECT_EQ(turn.system_prompt, WithTools("Mine.", Tools()));
  EXPECT_EQ(turn.expected_turn, 7u) << "the caller's own";
  turn = TurnOf("none", {{Role::kUser, "hi"}, {Role::kAssistant, "ho"}});
  ASSERT_TRUE(SayTools(core_, Tools(), &turn).ok());
  EXPECT_EQ(turn.system_prompt, WithTools("Default.", Tools()));
  turn.session_id = "nobody";
  EXPECT_TRUE(absl::IsNotFound(SayTools(core_, Tools(), &turn)));
}

TEST_F(SayToolsTest, WithoutSystemMessagesASessionKeepsItsFirstOnes) {
  core_.set_chat_template(&without_system_);
  ChatTurn turn = TurnOf("s", {{Role::kUser, WithTools("", Tools()) + "\n\nhi"},
                               {Role::kAssistant, "ho"}});
  ASSERT_TRUE(SayTools(core_, Tools(), &turn).ok());
  EXPECT_FALSE(turn.system_prompt.has_value());
  EXPECT_EQ(turn.messages.size(), 1u);
  const absl::Status other = SayTools(core_, {Tools()[0]}, &turn);
  EXPECT_TRUE(absl::IsFailedPrecondition(other)) << other;
  EXPECT_THAT(std::string(other.message()), HasSubstr("tools: session 's'"));
}

}  // namespace
}  // namespace xcache
