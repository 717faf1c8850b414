// Answers that are held to a grammar, through the scheduler.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

GrammarSpec Choice(std::vector<std::string> choices) {
  GrammarSpec spec;
  spec.kind = GrammarSpec::Kind::kChoice;
  spec.choices = std::move(choices);
  return spec;
}

GrammarSpec Regex(std::string text) {
  GrammarSpec spec;
  spec.kind = GrammarSpec::Kind::kRegex;
  spec.text = std::move(text);
  return spec;
}

class CoreGrammarTest : public ::testing::Test {
 protected:
  ChatTurn Turn(GrammarSpec grammar, uint64_t seed = 1) {
    ChatTurn turn = h_.Turn("", "go", 64);
    turn.options.grammar = std::move(grammar);
    turn.options.sampling.temperature = 1.0f;
    turn.options.seed = seed;
    return turn;
  }

  Harness h_;
};

TEST_F(CoreGrammarTest, AnswersAreWhatTheGrammarAllows) {
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto sink = h_.Chat(Turn(Choice({"yes", "no", "yes, two"}), seed));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->final().finish_reason, FinishReason::kEnd);
    seen.insert(sink->text());
  }
  for (const std::string& text : seen) {
    EXPECT_TRUE(text == "yes" || text == "no" || text == "yes, two") << text;
  }
  EXPECT_GT(seen.size(), 1u);
  EXPECT_EQ(h_.metrics->observations(CoreHistogram::kGrammarCompile), 1u);
  EXPECT_GT(h_.metrics->observations(CoreHistogram::kGrammarMask), 20u);
}

TEST_F(CoreGrammarTest, ManyAtOnceHaveAPlaceEach) {
  std::vector<std::shared_ptr<CollectSink>> sinks;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    sinks.push_back(h_.StartChat(Turn(Regex("(ab|cd){3}"), seed)));
  }
  for (uint64_t seed = 0; seed < sinks.size(); ++seed) {
    sinks[seed]->Wait();
    ASSERT_TRUE(sinks[seed]->status().ok()) << sinks[seed]->status();
    EXPECT_EQ(sinks[seed]->text().size(), 6u);
    // As alone.
    EXPECT_EQ(h_.Chat(Turn(Regex("(ab|cd){3}"), seed))->text(),
              sinks[seed]->text());
  }
}

TEST_F(CoreGrammarTest, StopAndLengthHold) {
  ChatTurn stopped = Turn(Choice({"abcdef"}));
  stopped.options.stop = {"cd"};
  const auto stop = h_.Chat(stopped);
  EXPECT_EQ(stop->text(), "ab");
  EXPECT_EQ(stop->final().finish_reason, FinishReason::kStop);
  ChatTurn cut = Turn(Choice({"abcdef"}));
  cut.options.max_tokens = 4;
  const auto length = h_.Chat(cut);
  EXPECT_EQ(length->text(), "abcd");
  EXPECT_EQ(length->final().finish_reason, FinishReason::kMaxTokens);
}

TEST_F(CoreGrammarTest, ASessionsHistoryIsItsTokens) {
  h_.NewSession("s");
  ChatTurn turn = Turn(Choice({"yes, two"}));
  turn.session_id = "s";
  ASSERT_TRUE(h_.Chat(turn)->status().ok());
  const SessionRecord record = h_.Record("s");
  EXPECT_EQ(record.messages.back().content, "yes, two");
  const auto next = h_.Chat(h_.Turn("s", "on", 4));
  EXPECT_EQ(next->text(), h_.Greedy(h_.PromptOf(record, "on"), 4));
}

TEST_F(CoreGrammarTest, GenerateIsHeldToo) {
  GenerateRequest request;
  request.tenant = "t";
  request.prompt = {'a'};
  request.options.grammar = Regex("[0-9]{3}");
  EXPECT_EQ(h_.Generate(request)->text().size(), 3u);
}

TEST_F(CoreGrammarTest, WhatCannotBeHeldToIsRefused) {
  for (const char* regex : {"(", "a{2000}"}) {
    const auto sink = h_.Chat(Turn(Regex(regex)));
    EXPECT_TRUE(absl::IsInvalidArgument(sink->status())) << sink->status();
  }
  ChatTurn no_end = Turn(Regex("a"));
  no_end.options.ignore_eos = true;
  EXPECT_TRUE(absl::IsInvalidArgument(h_.Chat(no_end)->status()));
}

TEST_F(CoreGrammarTest, OthersGoOnAndOwnersMayLeaveWhileItIsCompiled) {
  // Work before it.
  std::vector<std::shared_ptr<CollectSink>> busy;
  for (int i = 0; i < 4; ++i) {
    busy.push_back(
        h_.StartChat(Turn(Regex("[^a]{1," + std::to_string(240 + i) + "}"))));
  }
  ChatTurn turn = Turn(Regex("[0-9]{5}"));
  turn.cancellation = std::make_shared<Cancellation>();
  const auto waits = h_.StartChat(turn);
  EXPECT_TRUE(h_.Chat(h_.Turn("", "hi", 4))->status().ok());
  turn.cancellation->Cancel();
  waits->Wait();
  EXPECT_TRUE(waits->status().ok() || absl::IsCancelled(waits->status()));
  for (const auto& sink : busy) {
    sink->Wait();
    EXPECT_TRUE(sink->status().ok()) << sink->status();
  }
}

}  // namespace
}  // namespace xcache::testing
