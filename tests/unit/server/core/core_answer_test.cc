// An answer's text and its tokens in the session's history are one thing,
// whatever ended it; and what penalties look at.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/utf8.h"
#include "server/core/scheduler/stop_matcher.h"
#include "server/core/sessions/penalty_history.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

// Words of fake_text.h.
constexpr TokenId kTwo = kFirstWord;              // ", two"
constexpr TokenId kEuroBegins = kFirstWord + 1;   // "x", E2 82
constexpr TokenId kEuroEnds = kFirstWord + 2;     // AC, " y"
constexpr TokenId kEmojiBegins = kFirstWord + 3;  // "z", F0 9F 98

std::vector<TokenId> Script(std::string_view before,
                            std::vector<TokenId> words) {
  std::vector<TokenId> script(before.begin(), before.end());
  script.insert(script.end(), words.begin(), words.end());
  return script;
}

class CoreAnswerTest : public ::testing::Test {
 protected:
  CoreAnswerTest() { h_.NewSession("s"); }

  // Answers `script` in a turn, whose message and tokens are then to be `text`.
  void Expect(const std::vector<TokenId>& script, ChatTurn turn,
              const std::string& text, FinishReason reason) {
    h_.engine->set_script(script);
    turn.options.num_logprobs = 1;
    const auto sink = h_.Chat(turn);
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->text(), text);
    EXPECT_EQ(sink->final().finish_reason, reason);
    const SessionRecord record = h_.Record("s");
    EXPECT_EQ(record.messages.back().content, text);
    EXPECT_EQ(Said(record), text);
    h_.engine->set_script({});
    // The next turn goes on from that very history.
    const auto next = h_.Chat(h_.Turn("s", "on", 4));
    EXPECT_EQ(next->text(), h_.Greedy(h_.PromptOf(record, "on"), 4));
  }
  ChatTurn Turn(int64_t max_tokens, std::vector<std::string> stop = {}) {
    ChatTurn turn = h_.Turn("s", "go", max_tokens);
    turn.options.stop = std::move(stop);
    return turn;
  }

  // What the tokens of the last answer spell, between header and end.
  std::string Said(const SessionRecord& record) {
    const SessionMessage& answer = record.messages.back();
    std::vector<TokenId> tokens(record.tokens.begin() + answer.token_begin,
                                record.tokens.begin() + answer.token_end);
    EXPECT_EQ(tokens[0], kHeader);
    EXPECT_EQ(tokens[tokens.size() - 2], kEnd);
    tokens.erase(tokens.begin(), tokens.begin() + 2);
    tokens.resize(tokens.size() - 2);
    return ToUtf8(h_.tokenizer.Decode(tokens));
  }

  Harness h_;
};

TEST_F(CoreAnswerTest, AStopStringInsideATokenCutsTheTokenToo) {
  Expect(Script("One", {kTwo, 'x'}), Turn(16, {" two"}), "One,",
         FinishReason::kStop);
  Expect(Script("One", {kTwo, 'x'}), Turn(16, {"wo"}), "One, t",
         FinishReason::kStop);
  Expect(Script("One", {kTwo, 'x'}), Turn(16, {"wox"}), "One, t",
         FinishReason::kStop);
  Expect(Script("One", {kTwo, 'x'}), Turn(16, {"One"}), "",
         FinishReason::kStop);
  Expect(Script("", {kTwo, kTwo}), Turn(16, {"o, "}), ", tw",
         FinishReason::kStop);
}

TEST_F(CoreAnswerTest, AStopStringBetweenTokensCutsThere) {
  Expect(Script("One, three", {}), Turn(16, {"three"}), "One, ",
         FinishReason::kStop);
  Expect(Script("One", {kTwo, 'x', 'y'}), Turn(16, {"xy"}), "One, two",
         FinishReason::kStop);
}

TEST_F(CoreAnswerTest, ACharacterOfTwoTokensThatAStopStringFollows) {
  Expect(Script("", {kEuroBegins, kEuroEnds}), Turn(16, {" y"}),
         "x\xE2\x82\xAC", FinishReason::kStop);
  Expect(Script("a", {kEuroBegins, 'S'}), Turn(16, {"S"}), "ax",
         FinishReason::kStop);
}

TEST_F(CoreAnswerTest, ACharacterThatTheLimitCutsOffIsInNeither) {
  Expect(Script("ab", {kEuroBegins}), Turn(3), "abx", FinishReason::kMaxTokens);
  Expect(Script("ab", {kEuroBegins, kEuroEnds}), Turn(4), "abx\xE2\x82\xAC y",
         FinishReason::kMaxTokens);
  Expect(Script("", {kEmojiBegins}), Turn(1), "z", FinishReason::kMaxTokens);
  Expect(Script("a", {0xF0, 0x9F}), Turn(3), "a", FinishReason::kMaxTokens);
}

TEST_F(CoreAnswerTest, ACharacterThatTheModelLeavesUnfinishedIsInNeither) {
  for (const TokenId end : {kEnd, kOtherEnd}) {
    Expect(Script("ab", {kEmojiBegins, end}), Turn(16), "abz",
           FinishReason::kEnd);
    Expect(Script("ab", {kTwo, end}), Turn(16), "ab, two", FinishReason::kEnd);
  }
}

TEST_F(CoreAnswerTest, BytesInsideThatAreNoCharacterAreReplacedInBoth) {
  Expect(Script("a", {0xFF, 'b', kEmojiBegins}), Turn(4),
         "a\xEF\xBF\xBD"
         "bz",
         FinishReason::kMaxTokens);
}

TEST_F(CoreAnswerTest, AFullContextCutsACharacterLikeAnyOther) {
  Harness::Options options;
  options.core.max_context = 32;
  Harness h(options);
  h.NewSession("s");
  const size_t prompt = h.PromptOf(h.Record("s"), "go").size();
  std::vector<TokenId> script(32 - prompt - 1, 'a');
  script.push_back(kEuroBegins);
  h.engine->set_script(script);
  const auto sink = h.Chat(h.Turn("s", "go", 100));
  EXPECT_EQ(sink->final().finish_reason, FinishReason::kContext);
  EXPECT_EQ(sink->text(), std::string(32 - prompt - 1, 'a') + "x");
  const SessionRecord record = h.Record("s");
  EXPECT_EQ(record.tokens.size(), 32u + 2);
  EXPECT_EQ(record.tokens[31], 'x');
}

TEST(PenaltyHistoryTest, IsWhatWasSaidWithoutTheTemplatesTokens) {
  Harness h;
  h.NewSession("s", "be kind");
  h.engine->set_script(Script("yes", {kEnd}));
  ASSERT_TRUE(h.Chat(h.Turn("s", "hi"))->status().ok());
  const SessionRecord record = h.Record("s");
  const auto history = [&](size_t n) {
    return h.tokenizer.Decode(
        PenaltyHistory(h.chat_template, record.tokens, record.messages, {}, n),
        /*with_special=*/true);
  };
  EXPECT_EQ(history(100), "be kindhiyes");
  EXPECT_EQ(history(4), "iyes");
  EXPECT_EQ(history(0), "");
}

// "a" is the assistant's name in the template's header, "u" the user's.
TEST(PenaltyHistoryTest, PenaltiesLeaveTheTemplatesTokensAlone) {
  Harness h;
  h.NewSession("s");
  h.engine->set_script(Script("aub", {kEnd}));
  ChatTurn turn = h.Turn("s", "hi");
  turn.options.sampling.presence_penalty = 100.0f;
  EXPECT_EQ(h.Chat(turn)->text(), "aub");
  // What was said is penalized, in this turn and the next ones.
  h.engine->set_script(Script("abb", {kEnd}));
  const std::string next = h.Chat(turn)->text();
  for (const char said : {'a', 'u', 'b', 'h', 'i'}) {
    EXPECT_EQ(next.find(said), std::string::npos) << next;
  }
  turn.session_id = "";
  h.engine->set_script(Script("uab", {kEnd}));
  EXPECT_EQ(h.Chat(turn)->text(), "uab");
}

}  // namespace
}  // namespace xcache::testing
