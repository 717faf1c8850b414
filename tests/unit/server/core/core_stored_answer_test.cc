// Turns that make sessions, or nothing, of others' beginnings; system prompts
// that are exchanged; answers with notes.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/sessions/answer_notes.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

ChatTurn Noted(ChatTurn turn, std::string name) {
  turn.note = {.name = std::move(name), .data = "d"};
  return turn;
}

// A turn whose outcome is the session `id`, from `from`'s first messages on.
ChatTurn Branch(Harness& h, std::string id, std::string from, std::string text,
                std::string after = "") {
  ChatTurn turn = Noted(h.Turn(std::move(from), std::move(text)), "n" + id);
  turn.keep = TurnKeep::kNew;
  turn.new_session_id = std::move(id);
  turn.after = std::move(after);
  return turn;
}

SessionInfo Info(Harness& h, const std::string& id) {
  return h.core->GetSession("t", id, true).value();
}

TEST(CoreStoredAnswerTest, ATurnMakesASessionInOneCommit) {
  Harness h;
  const auto sink = h.Chat(Branch(h, "a", "", Letters(300, 1)));
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->final().turn, 1u);
  EXPECT_EQ(sink->final().durability, Durability::kLocal);
  EXPECT_EQ(h.Count(CoreCounter::kCommits), 1u);
  EXPECT_EQ(h.Count(CoreCounter::kSessionsResume), 1u);
  const SessionInfo info = Info(h, "a");
  ASSERT_EQ(info.answers.size(), 1u);
  const AnswerNote& note = info.answers[0];
  EXPECT_EQ(note.name, "na");
  EXPECT_EQ(note.data, "d");
  EXPECT_EQ(note.num_messages, 2u);
  EXPECT_EQ(note.finish_reason, sink->final().finish_reason);
  EXPECT_EQ(note.prompt_tokens, sink->final().prompt_tokens);
  EXPECT_EQ(note.generated_tokens, sink->final().generated_tokens);
  EXPECT_EQ(info.messages[1].content, sink->text());
  // It goes on as any session, and after a restart.
  h.Restart();
  const SessionRecord record = h.Record("a");
  EXPECT_EQ(h.Chat(h.Turn("a", "on"))->text(),
            h.Greedy(h.PromptOf(record, "on")));
}

TEST(CoreStoredAnswerTest, ATurnThatFailsMakesNone) {
  Harness h;
  ChatTurn turn = Branch(h, "a", "", "hi");
  turn.cancellation = std::make_shared<Cancellation>();
  turn.cancellation->Cancel();
  EXPECT_TRUE(absl::IsCancelled(h.Chat(turn)->status()));
  EXPECT_TRUE(absl::IsNotFound(h.core->GetSession("t", "a", false).status()));
  EXPECT_FALSE(Info(h, (h.NewSession("b"), "b")).in_memory);
  // Its id is free again.
  EXPECT_TRUE(h.Chat(Branch(h, "a", "", "hi"))->status().ok());
}

TEST(CoreStoredAnswerTest, TwoTurnsGoOnFromTheSameAnswer) {
  Harness h;
  ASSERT_TRUE(h.Chat(Branch(h, "a", "", Letters(200, 1)))->status().ok());
  const SessionRecord then = h.Record("a");
  ASSERT_TRUE(h.Chat(Noted(h.Turn("a", "one"), "n2"))->status().ok());
  ASSERT_TRUE(h.Chat(Noted(h.Turn("a", "two"), "n3"))->status().ok());
  const auto other = h.Chat(Branch(h, "b", "a", "other", "na"));
  ASSERT_TRUE(other->status().ok()) << other->status();
  EXPECT_EQ(other->text(), h.Greedy(h.PromptOf(then, "other")));
  EXPECT_GT(other->final().reused.total(), 0u);
  EXPECT_EQ(Info(h, "b").turn, 2u);
  // The other's notes are not its own, and the other is as it was.
  ASSERT_EQ(Info(h, "b").answers.size(), 1u);
  EXPECT_EQ(Info(h, "b").answers[0].num_messages, 4u);
  EXPECT_EQ(Info(h, "a").answers.size(), 3u);
  EXPECT_EQ(Info(h, "a").num_messages, 6u);
  EXPECT_TRUE(
      absl::IsNotFound(h.Chat(Branch(h, "c", "a", "x", "nb"))->status()));
  // In place from the last answer alone.
  ChatTurn late = h.Turn("a", "late");
  late.after = "n2";
  EXPECT_TRUE(absl::IsAborted(h.Chat(late)->status()));
  late.after = "n3";
  EXPECT_TRUE(h.Chat(late)->status().ok());
  EXPECT_TRUE(absl::IsNotFound(h.Chat(Branch(h, "c", "none", "x"))->status()));
}

TEST(CoreStoredAnswerTest, NothingIsKept) {
  Harness h;
  ASSERT_TRUE(h.Chat(Branch(h, "a", "", Letters(200, 1)))->status().ok());
  const SessionRecord before = h.Record("a");
  ChatTurn turn = h.Turn("a", "and now?");
  turn.keep = TurnKeep::kNothing;
  const auto sink = h.Chat(turn);
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->text(), h.Greedy(h.PromptOf(before, "and now?")));
  EXPECT_EQ(h.Record("a"), before);
  EXPECT_EQ(h.core->Snapshot().sessions, 1u);
}

TEST(CoreStoredAnswerTest, SystemPromptsAreExchanged) {
  Harness h;
  ChatTurn first = Branch(h, "a", "", "hi");
  first.system_prompt = "Be brief.";
  ASSERT_TRUE(h.Chat(first)->status().ok());
  ASSERT_EQ(Info(h, "a").messages.size(), 3u);
  EXPECT_EQ(Info(h, "a").messages[0].content, "Be brief.");
  EXPECT_EQ(Info(h, "a").answers[0].num_messages, 3u);
  const SessionRecord record = h.Record("a");
  // The same one changes nothing.
  ChatTurn same = Branch(h, "b", "a", "on");
  same.system_prompt = "Be brief.";
  EXPECT_EQ(h.Chat(same)->text(), h.Greedy(h.PromptOf(record, "on")));
  // In place: the notes of answers before count what comes before them.
  ChatTurn none = Noted(h.Turn("a", "on"), "n2");
  none.system_prompt = "";
  ASSERT_TRUE(h.Chat(none)->status().ok());
  SessionInfo info = Info(h, "a");
  ASSERT_EQ(info.messages.size(), 4u);
  EXPECT_EQ(info.messages[0].content, "hi");
  ASSERT_EQ(info.answers.size(), 2u);
  EXPECT_EQ(info.answers[0].num_messages, 2u);
  EXPECT_EQ(info.answers[1].num_messages, 4u);
  ChatTurn other = h.Turn("a", "on");
  other.system_prompt = "Be long.";
  ASSERT_TRUE(h.Chat(other)->status().ok());
  info = Info(h, "a");
  EXPECT_EQ(info.messages[0].content, "Be long.");
  EXPECT_EQ(info.answers[0].num_messages, 3u);
  EXPECT_FALSE(info.retokenized);
  // What it goes on from is what its messages are.
  const SessionRecord now = h.Record("a");
  EXPECT_EQ(h.Chat(h.Turn("a", "so"))->text(), h.Greedy(h.PromptOf(now, "so")));
}

TEST(CoreStoredAnswerTest, NotesGoWithTheirAnswers) {
  Harness h;
  ASSERT_TRUE(h.Chat(Branch(h, "a", "", "hi"))->status().ok());
  ASSERT_TRUE(h.Chat(Noted(h.Turn("a", "on"), "n2"))->status().ok());
  ChatTurn again;
  again.tenant = "t";
  again.session_id = "a";
  again.regenerate = true;
  again.options.max_tokens = 3;
  ASSERT_TRUE(h.Chat(again)->status().ok());
  ASSERT_EQ(Info(h, "a").answers.size(), 1u);
  EXPECT_EQ(Info(h, "a").answers[0].name, "na");
  // Another session's are not there.
  ASSERT_TRUE(h.core->ForkSession(Fork("t", "a", "f", 0)).ok());
  EXPECT_TRUE(Info(h, "f").answers.empty());
  EXPECT_TRUE(Info(h, "f").messages.size() == 4);
}

TEST(CoreStoredAnswerTest, ForgottenAnswersTakeWhatNobodyNeeds) {
  Harness h;
  ASSERT_TRUE(h.Chat(Branch(h, "a", "", Letters(100, 1)))->status().ok());
  ASSERT_TRUE(h.Chat(Noted(h.Turn("a", "2"), "n2"))->status().ok());
  ASSERT_TRUE(h.Chat(Noted(h.Turn("a", "3"), "n3"))->status().ok());
  EXPECT_TRUE(absl::IsNotFound(h.core->ForgetAnswer("t", "a", "n9", true)));
  EXPECT_TRUE(absl::IsNotFound(h.core->ForgetAnswer("u", "a", "n2", true)));
  // A later one needs its messages.
  ASSERT_TRUE(h.core->ForgetAnswer("t", "a", "n2", true).ok());
  EXPECT_EQ(Info(h, "a").messages.size(), 6u);
  EXPECT_TRUE(absl::IsNotFound(h.core->ForgetAnswer("t", "a", "n2", true)));
  ASSERT_TRUE(h.core->ForgetAnswer("t", "a", "n3", true).ok());
  EXPECT_EQ(Info(h, "a").messages.size(), 2u);
  EXPECT_EQ(Info(h, "a").turn, 3u);
  const SessionRecord record = h.Record("a");
  EXPECT_EQ(h.Chat(h.Turn("a", "on"))->text(),
            h.Greedy(h.PromptOf(record, "on")));
  ASSERT_TRUE(h.core->ForgetAnswer("t", "a", "na", true).ok());
  EXPECT_TRUE(absl::IsNotFound(h.core->GetSession("t", "a", false).status()));
  // Without cutting the messages stay.
  ASSERT_TRUE(h.Chat(Branch(h, "b", "", "hi"))->status().ok());
  ASSERT_TRUE(h.core->ForgetAnswer("t", "b", "nb", false).ok());
  EXPECT_EQ(Info(h, "b").messages.size(), 2u);
}

TEST(CoreStoredAnswerTest, AnAnswerIsForgottenWhileATurnRuns) {
  HarnessOptions options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  ASSERT_TRUE(h.Chat(Branch(h, "a", "", "hi"))->status().ok());
  ChatTurn turn = Noted(h.Turn("a", "on", 60), "n2");
  turn.options.ignore_eos = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  ASSERT_TRUE(h.core->ForgetAnswer("t", "a", "na", true).ok());
  sink->Wait();
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  const SessionInfo info = Info(h, "a");
  ASSERT_EQ(info.answers.size(), 1u);
  EXPECT_EQ(info.answers[0].name, "n2");
  EXPECT_EQ(info.messages.size(), 4u);
}

TEST(CoreStoredAnswerTest, SessionsKeepMessagesAndData) {
  Harness h;
  CreateSessionOptions create = Harness::Named("s");
  create.data = "{}";
  create.messages = {
      {Role::kSystem, "Be."}, {Role::kUser, "q"}, {Role::kAssistant, "a"}};
  ASSERT_TRUE(h.core->CreateSession(create).ok());
  EXPECT_EQ(Info(h, "s").data, "{}");
  EXPECT_EQ(Info(h, "s").messages.size(), 3u);
  const SessionRecord record = h.Record("s");
  EXPECT_EQ(h.Chat(h.Turn("s", "on"))->text(),
            h.Greedy(h.PromptOf(record, "on")));
  SessionUpdate update;
  update.data = "new";
  ASSERT_TRUE(h.core->UpdateSession("t", "s", update).ok());
  EXPECT_EQ(Info(h, "s").data, "new");
  update.data = std::string(kMaxSessionDataBytes + 1, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(
      h.core->UpdateSession("t", "s", update).status()));
}

TEST(AnswerNotesTest, WhatIsNoNoteIsPassedOver) {
  SessionRecord record;
  record.messages.resize(4);
  record.settings = {{"answer", "x"},
                     {"answer", "[]"},
                     {"answer", "{}"},
                     {"answer", R"({"name":1,"messages":-1})"},
                     {"answer", R"({"name":"late","messages":5})"},
                     {"remat", "step"}};
  EXPECT_TRUE(AnswerNotesOf(record).empty());
  AddAnswerNote({.name = "a", .data = "\xff", .num_messages = 2}, &record);
  ASSERT_EQ(AnswerNotesOf(record).size(), 1u);
  EXPECT_EQ(AnswerNotesOf(record)[0].data, "\xEF\xBF\xBD");
  EXPECT_TRUE(EraseAnswerNote("a", &record));
  EXPECT_FALSE(EraseAnswerNote("a", &record));
  EXPECT_EQ(record.settings.size(), 6u);
}

}  // namespace
}  // namespace xcache::testing
