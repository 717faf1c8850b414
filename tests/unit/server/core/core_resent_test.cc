// Histories that are sent again as text: answers are the tokens that the model
// wrote, where they are known.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

// A word of fake_text.h, which text is never encoded as.
constexpr TokenId kTwo = kFirstWord;  // ", two"

std::vector<TokenId> Script(const std::string& text, TokenId word) {
  std::vector<TokenId> script(text.begin(), text.end());
  script.push_back(word);
  for (const char c : std::string(64, '.')) script.push_back(c);
  script.push_back(kEnd);
  return script;
}

ChatTurn Whole(std::vector<ChatMessage> messages, int64_t max_tokens = 200) {
  ChatTurn turn;
  turn.tenant = "t";
  turn.messages = std::move(messages);
  turn.options.max_tokens = max_tokens;
  return turn;
}

class CoreResentTest : public ::testing::Test {
 protected:
  // What a client has of a conversation after an answer of that script.
  std::vector<ChatMessage> Ask(const std::vector<TokenId>& script,
                               std::vector<ChatMessage> messages) {
    h_.engine->set_script(script);
    const auto sink = h_.Chat(Whole(messages));
    h_.engine->set_script({});
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    messages.push_back({Role::kAssistant, sink->text()});
    messages.push_back({Role::kUser, "and now?"});
    return messages;
  }
  FinalInfo Say(ChatTurn turn) {
    const auto sink = h_.Chat(std::move(turn));
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    return sink->final();
  }
  // Blocks that are known up to the end of an answer of that script.
  static uint64_t Known(size_t question, const std::vector<TokenId>& script) {
    // Two tokens are the header's and two the end's; an answer's last token
    // was never computed with.
    return (question + 4 + 2 + script.size() - 1) / 64 * 64;
  }

  Harness h_;
  const std::string question_ = Letters(100, 1);
  const std::vector<ChatMessage> asked_ = {{Role::kUser, question_}};
  const std::vector<TokenId> script_ = Script("One", kTwo);
};

TEST_F(CoreResentTest, TheKnownPrefixGoesOnBeyondTheAnswer) {
  const auto history = Ask(script_, asked_);
  ASSERT_EQ(history[1].content, "One, two" + std::string(64, '.'));
  const FinalInfo final = Say(Whole(history));
  EXPECT_EQ(final.reused.total(), Known(100, script_));
  // The answer is one token for its five bytes.
  EXPECT_EQ(final.prompt_tokens, 104u + script_.size() + 3 + 12 + 2);
  // The next answer comes after this one, and is known as well.
  auto longer = history;
  const auto second = Script("Three", kTwo);
  longer = Ask(second, longer);
  EXPECT_GE(Say(Whole(longer)).reused.total(),
            (final.prompt_tokens + second.size() - 1) / 64 * 64);
}

TEST_F(CoreResentTest, WhatASessionSaidIsKnownToAWholeHistory) {
  h_.NewSession("s");
  h_.engine->set_script(script_);
  const auto sink = h_.Chat(h_.Turn("s", question_, 200));
  h_.engine->set_script({});
  EXPECT_EQ(Say(Whole({{Role::kUser, question_},
                       {Role::kAssistant, sink->text()},
                       {Role::kUser, "and now?"}}))
                .reused.total(),
            Known(100, script_));
}

TEST_F(CoreResentTest, AThoughtThatIsLeftOutIsThereAllTheSame) {
  auto thinking =
      Script("<think>Hm" + std::string(70, 'm') + "</think>\n", 'Y');
  thinking.insert(thinking.end() - 1, kTwo);
  auto history = Ask(thinking, asked_);
  const std::string all = history[1].content;
  const std::string said = all.substr(all.find("</think>\n") + 9);
  for (const std::string& sent : {said, "  " + said + "\n", all}) {
    history[1].content = sent;
    const FinalInfo final = Say(Whole(history));
    EXPECT_EQ(final.reused.total(), Known(100, thinking)) << sent;
    EXPECT_GT(final.prompt_tokens, 100 + thinking.size());
  }
  // Another thought is another answer.
  history[1].content = "<think>No.</think>\n" + said;
  EXPECT_EQ(Say(Whole(history)).reused.total(), 64u);
}

TEST_F(CoreResentTest, CallsAreTheSameHoweverTheirJsonIsSpaced) {
  const std::string call =
      "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a b\": \" 1\\\" \"}}";
  auto script = Script("I call. " + call, kTwo);
  auto history = Ask(script, asked_);
  std::string& sent = history[1].content;
  const std::string was = sent;
  const auto replace = [&](const std::string& from, const std::string& to) {
    sent = was;
    sent.replace(sent.find(from), from.size(), to);
  };
  replace("I call. <tool_call>", "I call.\n<tool_call>\n ");
  EXPECT_EQ(Say(Whole(history)).reused.total(), Known(100, script));
  replace("{\"a b\": ", "{\"a b\":");
  EXPECT_EQ(Say(Whole(history)).reused.total(), Known(100, script));
  // But not what is in its texts.
  replace("{\"a b\": ", "{\"ab\": ");
  EXPECT_LT(Say(Whole(history)).reused.total(), Known(100, script));
  replace(" 1\\\" ", " 1\\\"");
  EXPECT_LT(Say(Whole(history)).reused.total(), Known(100, script));
}

TEST_F(CoreResentTest, AnotherTextPromptOrTenantIsNotIt) {
  const auto history = Ask(script_, asked_);
  auto other = history;
  other[1].content[20] = '!';
  EXPECT_LT(Say(Whole(other)).reused.total(), Known(100, script_));
  other = history;
  other[0].content[0] = '!';
  const FinalInfo elsewhere = Say(Whole(other));
  EXPECT_EQ(elsewhere.reused.total(), 0u);
  // ", two" is five tokens there, and the prompt so much longer.
  EXPECT_EQ(elsewhere.prompt_tokens, Say(Whole(history)).prompt_tokens + 4);
  ChatTurn theirs = Whole(history);
  theirs.tenant = "other";
  const FinalInfo final = Say(theirs);
  EXPECT_EQ(final.reused.total(), 0u);
  EXPECT_EQ(final.prompt_tokens, elsewhere.prompt_tokens);
  ChatTurn no_cache = Whole(history);
  no_cache.options.no_cache = true;
  EXPECT_EQ(Say(no_cache).prompt_tokens, elsewhere.prompt_tokens);
}

TEST_F(CoreResentTest, OfTwoAnswersThatReadAlikeItIsTheLater) {
  const auto spelled = Script("One, tw", 'o');
  Ask(script_, asked_);
  const auto history = Ask(spelled, asked_);
  EXPECT_EQ(Say(Whole(history)).reused.total(), Known(100, spelled));
  EXPECT_EQ(Say(Whole(history)).prompt_tokens,
            104u + spelled.size() + 3 + 12 + 2);
  Ask(script_, asked_);
  EXPECT_EQ(Say(Whole(history)).prompt_tokens,
            104u + script_.size() + 3 + 12 + 2);
}

TEST(CoreResentLimitsTest, WhereThoughtsLeaveNoRoomTheTextIsTaken) {
  Harness::Options options;
  options.core.max_context = 512;
  Harness h(options);
  auto script = Script("<think>" + std::string(250, 'm') + "</think>", 'Y');
  h.engine->set_script(script);
  std::vector<ChatMessage> history = {{Role::kUser, Letters(60, 1)}};
  const std::string all = h.Chat(Whole(history, 400))->text();
  h.engine->set_script({});
  history.push_back({Role::kAssistant, all.substr(all.find("</think>") + 8)});
  history.push_back({Role::kUser, "and now?"});
  const auto prompt = [&](int64_t max_tokens) {
    const auto sink = h.Chat(Whole(history, max_tokens));
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    return sink->final().prompt_tokens;
  };
  const uint64_t with = 64 + script.size() + 3 + 12 + 2;
  const uint64_t without = with - 265;
  EXPECT_EQ(prompt(512 - static_cast<int64_t>(with)), with);
  EXPECT_EQ(prompt(512 - static_cast<int64_t>(with) + 1), without);
  EXPECT_EQ(prompt(1 << 30), with);
  // And where nothing is kept.
  h.options.core.answers_bytes = 0;
  h.Restart();
  h.engine->set_script(script);
  ASSERT_TRUE(h.Chat(Whole({history[0]}, 400))->status().ok());
  h.engine->set_script({});
  EXPECT_EQ(prompt(1), without);
}

}  // namespace
}  // namespace xcache::testing
