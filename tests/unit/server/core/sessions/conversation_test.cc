// Conversations that lose messages or change their tokens, with a template
// whose messages depend on their place.
#include "server/core/sessions/conversation.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/types.h"
#include "tests/unit/server/core/fake_text.h"

namespace xcache::testing {
namespace {

// As FakeTemplate, after BOS and a default system prompt where the first
// message is none.
class PlacedTemplate final : public ChatTemplate {
 public:
  std::string_view family() const override { return "placed"; }
  absl::StatusOr<std::vector<TokenId>> RenderMessage(
      const ChatMessage& message, size_t index) const override {
    std::vector<TokenId> ids;
    if (index == 0) ids.push_back(kBos);
    if (index == 0 && message.role != Role::kSystem) {
      const auto system = *base_.RenderMessage({Role::kSystem, "be good"}, 0);
      ids.insert(ids.end(), system.begin(), system.end());
    }
    const auto own = *base_.RenderMessage(message, index);
    ids.insert(ids.end(), own.begin(), own.end());
    return ids;
  }
  std::vector<TokenId> AssistantHeader() const override {
    return base_.AssistantHeader();
  }
  std::vector<TokenId> AssistantEnd(bool ended) const override {
    return base_.AssistantEnd(ended);
  }
  absl::Status CheckOrder(const std::vector<Role>& history,
                          const std::vector<ChatMessage>& next) const override {
    return base_.CheckOrder(history, next);
  }

 private:
  FakeTemplate base_;
};

// Messages u1 a1 u2 a2 ..., after a system prompt where there is one. Answers
// are of tokens that their text would not be rendered to: each letter's
// neighbour in between is special.
SessionRecord Talk(const ChatTemplate& chat_template, int num_turns,
                   std::string_view system_prompt) {
  SessionRecord record;
  std::vector<ChatMessage> messages;
  if (!system_prompt.empty()) {
    messages.push_back({Role::kSystem, std::string(system_prompt)});
  }
  for (int i = 0; i < num_turns; ++i) {
    messages.push_back({Role::kUser, "question " + std::to_string(i)});
    messages.push_back(
        {Role::kAssistant, std::string(70, static_cast<char>('a' + i))});
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != Role::kAssistant) {
      EXPECT_TRUE(Render(chat_template, {&messages[i], 1}, i, &record.tokens,
                         &record.messages)
                      .ok());
      continue;
    }
    SessionMessage answer{
        .role = static_cast<uint8_t>(Role::kAssistant),
        .content = messages[i].content,
        .token_begin = static_cast<uint32_t>(record.tokens.size())};
    const auto add = [&](const std::vector<TokenId>& ids) {
      record.tokens.insert(record.tokens.end(), ids.begin(), ids.end());
    };
    add(chat_template.AssistantHeader());
    add({kBos});  // nothing of the text
    for (const char c : messages[i].content) add({static_cast<uint8_t>(c)});
    add(chat_template.AssistantEnd(false));
    answer.token_end = static_cast<uint32_t>(record.tokens.size());
    record.messages.push_back(std::move(answer));
  }
  record.page_keys.resize(record.tokens.size() / kBlockTokens);
  return record;
}

std::vector<TokenId> TokensOf(const SessionRecord& record, size_t message) {
  const SessionMessage& m = record.messages[message];
  return {record.tokens.begin() + m.token_begin,
          record.tokens.begin() + m.token_end};
}

TEST(ConversationTest, LastMessagesBeginWithAUser) {
  const PlacedTemplate t;
  const SessionRecord with = Talk(t, 4, "be kind");
  EXPECT_EQ(LastMessages(with, 2), (std::vector<size_t>{0, 7, 8}));
  EXPECT_EQ(LastMessages(with, 3), (std::vector<size_t>{0, 7, 8}));
  EXPECT_EQ(LastMessages(with, 1), (std::vector<size_t>{0}));
  EXPECT_EQ(LastMessages(with, 8).size(), 9u);
  EXPECT_EQ(LastMessages(with, ~uint64_t{0}).size(), 9u);
  const SessionRecord without = Talk(t, 2, "");
  EXPECT_EQ(LastMessages(without, 3), (std::vector<size_t>{2, 3}));
  EXPECT_EQ(LastMessages(without, 4).size(), 4u);
  EXPECT_TRUE(LastMessages(SessionRecord(), 4).empty());
}

TEST(ConversationTest, KeptMessagesHaveTheirStoredTokens) {
  const PlacedTemplate t;
  const SessionRecord before = Talk(t, 4, std::string(150, 's'));
  SessionRecord record = before;
  const std::vector<size_t> kept = {0, 5, 6, 7, 8};
  ASSERT_TRUE(KeepMessages(t, kept, &record).ok());
  ASSERT_EQ(record.messages.size(), kept.size());
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ(TokensOf(record, i), TokensOf(before, kept[i])) << i;
    EXPECT_EQ(record.messages[i].content, before.messages[kept[i]].content);
  }
  EXPECT_EQ(record.messages.back().token_end, record.tokens.size());
  EXPECT_FALSE(IsRetokenized(record));
  // Pages of what still begins alike: the system prompt's.
  EXPECT_EQ(record.page_keys.size(), 150u / 64);
}

TEST(ConversationTest, AFirstMessageIsRenderedInItsNewPlace) {
  const PlacedTemplate t;
  const SessionRecord before = Talk(t, 3, "");
  SessionRecord record = before;
  ASSERT_TRUE(KeepMessages(t, std::vector<size_t>{2, 3}, &record).ok());
  EXPECT_EQ(TokensOf(record, 0),
            *t.RenderMessage({Role::kUser, "question 1"}, 0));
  EXPECT_NE(TokensOf(record, 0), TokensOf(before, 2));
  EXPECT_EQ(TokensOf(record, 1), TokensOf(before, 3));
  EXPECT_FALSE(IsRetokenized(record));
  EXPECT_TRUE(record.page_keys.empty());
}

TEST(ConversationTest, KeepingAllChangesNothing) {
  const PlacedTemplate t;
  const SessionRecord before = Talk(t, 2, "be kind");
  SessionRecord record = before;
  ASSERT_TRUE(
      KeepMessages(t, std::vector<size_t>{0, 1, 2, 3, 4}, &record).ok());
  EXPECT_EQ(record, before);
}

TEST(ConversationTest, RetokenizedTokensAreWhatTheTextIsRenderedTo) {
  const PlacedTemplate t;
  const FakeTokenizer tokenizer;
  const SessionRecord before = Talk(t, 3, "be kind");
  EXPECT_TRUE(TokensMatchText(t, tokenizer, before));
  SessionRecord record = before;
  ASSERT_TRUE(Retokenize(t, &record).ok());
  EXPECT_TRUE(IsRetokenized(record));
  EXPECT_TRUE(TokensMatchText(t, tokenizer, record));
  EXPECT_TRUE(record.page_keys.empty());
  EXPECT_NE(record.tokens, before.tokens);
  std::vector<TokenId> expected;
  ASSERT_TRUE(
      Render(t, MessagesOf(before), 0, &expected, /*rendered=*/nullptr).ok());
  EXPECT_EQ(record.tokens, expected);
}

TEST(ConversationTest, TokensOfSomethingElseDoNotMatch) {
  const PlacedTemplate t;
  const FakeTokenizer tokenizer;
  const SessionRecord good = Talk(t, 2, "be kind");
  const auto matches = [&](const auto& change) {
    SessionRecord record = good;
    change(record);
    return TokensMatchText(t, tokenizer, record);
  };
  EXPECT_TRUE(matches([](SessionRecord&) {}));
  // A caller's text with a special token in it, or another text.
  EXPECT_FALSE(matches([](SessionRecord& r) { r.tokens[4] = kEnd; }));
  EXPECT_FALSE(matches([](SessionRecord& r) { r.tokens[4] ^= 1; }));
  EXPECT_FALSE(matches([](SessionRecord& r) { r.messages[1].content += "!"; }));
  // An answer that reads otherwise, has no header, or no end.
  const uint32_t answer = good.messages[2].token_begin;
  EXPECT_FALSE(matches([&](SessionRecord& r) { r.tokens[answer + 5] ^= 1; }));
  EXPECT_FALSE(matches([&](SessionRecord& r) { r.tokens[answer] = 'x'; }));
  EXPECT_FALSE(matches([](SessionRecord& r) { r.tokens.back() = 'x'; }));
  EXPECT_FALSE(
      matches([](SessionRecord& r) { r.messages[2].content.clear(); }));
  // Tokens that no message has.
  EXPECT_FALSE(matches([](SessionRecord& r) { r.tokens.push_back('x'); }));
  EXPECT_FALSE(matches([](SessionRecord& r) { r.messages.pop_back(); }));
  // The text may end within the last token, before a stop string.
  EXPECT_TRUE(
      matches([](SessionRecord& r) { r.messages[2].content.pop_back(); }));
  EXPECT_FALSE(
      matches([](SessionRecord& r) { r.messages[2].content.resize(60); }));
}

}  // namespace
}  // namespace xcache::testing
