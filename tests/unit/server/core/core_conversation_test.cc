// Conversations beyond their turns: of another model, cut, exported, imported,
// answered again, and answered in part.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/core/sessions/conversation.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using ::testing::HasSubstr;

MigrateOptions Migrate(std::string id, uint64_t keep_last = 0,
                       std::string codec = "") {
  return {.tenant = "t",
          .id = std::move(id),
          .codec = std::move(codec),
          .keep_last_messages = keep_last};
}

ImportOptions Import(std::string document, std::string id = "") {
  return {.tenant = "t",
          .document = std::move(document),
          .id = std::move(id),
          .codec = ""};
}

// A session of a system prompt and so many turns.
void Talk(Harness& h, const std::string& id, int num_turns) {
  h.NewSession(id, Letters(200, 1));
  for (int i = 0; i < num_turns; ++i) {
    ASSERT_TRUE(
        h.Chat(h.Turn(id, absl::StrCat("question ", i)))->status().ok());
  }
}

// The answer that a conversation of these tokens gets is the one that it gets
// without any cache.
void ExpectGoesOn(Harness& h, const std::string& id) {
  const SessionRecord record = h.Record(id);
  const auto sink = h.Chat(h.Turn(id, "and now?"));
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->text(), h.Greedy(h.PromptOf(record, "and now?")));
  EXPECT_EQ(sink->final().turn, record.turn + 1);
}

TEST(CoreConversationTest, MigratedSessionGoesOnAndIsTheSame) {
  Harness h;
  Talk(h, "s", 3);
  SessionUpdate update;
  update.title = "kept";
  update.ttl = std::chrono::seconds(77);
  update.pinned = true;
  ASSERT_TRUE(h.core->UpdateSession("t", "s", update).ok());
  const SessionRecord before = h.Record("s");
  h.options.engine.model_fp = Sha256Of("another model");
  h.Restart();
  ASSERT_TRUE(absl::IsFailedPrecondition(h.Chat(h.Turn("s", "x"))->status()));
  const auto result = h.core->MigrateSession(Migrate("s"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->retokenized);
  EXPECT_EQ(result->tokens_before, before.tokens.size());
  EXPECT_EQ(result->messages_dropped, 0u);
  EXPECT_FALSE(result->session.needs_migration);
  EXPECT_TRUE(result->session.retokenized);
  EXPECT_EQ(result->session.durability, Durability::kLocal);
  const SessionRecord after = h.Record("s");
  EXPECT_EQ(result->tokens_after, after.tokens.size());
  EXPECT_EQ(after.model_fp, Sha256Of("another model"));
  EXPECT_EQ(after.cache_fp, h.core->default_codec().cache_fp());
  EXPECT_TRUE(after.page_keys.empty());
  EXPECT_EQ(after.title, "kept");
  EXPECT_EQ(after.ttl_ms, 77000);
  EXPECT_TRUE(after.pinned);
  EXPECT_EQ(after.turn, before.turn);
  EXPECT_EQ(after.create_ms, before.create_ms);
  ASSERT_EQ(after.messages.size(), before.messages.size());
  std::vector<TokenId> rendered;
  ASSERT_TRUE(
      Render(h.chat_template, MessagesOf(before), 0, &rendered, nullptr).ok());
  EXPECT_EQ(after.tokens, rendered);
  // Once more is nothing.
  const int64_t commits = h.store.sessions().commits();
  const auto again = h.core->MigrateSession(Migrate("s"));
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->retokenized);
  EXPECT_EQ(again->tokens_before, again->tokens_after);
  EXPECT_EQ(h.store.sessions().commits(), commits);
  EXPECT_EQ(h.Record("s"), after);
  ExpectGoesOn(h, "s");
  EXPECT_FALSE(h.Record("s").page_keys.empty());
}

TEST(CoreConversationTest, MigratingToAnotherCodecKeepsTheTokens) {
  Harness h;
  Talk(h, "s", 2);
  const SessionRecord before = h.Record("s");
  const auto result = h.core->MigrateSession(Migrate("s", 0, "fake:bits=2"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->retokenized);
  EXPECT_FALSE(result->session.retokenized);
  EXPECT_EQ(result->session.codec, "fake:bits=2");
  const SessionRecord after = h.Record("s");
  EXPECT_EQ(after.tokens, before.tokens);
  EXPECT_TRUE(after.page_keys.empty());
  // Its own codec stays where none is asked for.
  EXPECT_EQ(h.core->MigrateSession(Migrate("s"))->session.codec, "fake:bits=2");
  const auto sink = h.Chat(h.Turn("s", "and now?"));
  std::string expected;
  for (const TokenId token :
       FakeGreedy(h.options.engine, "fake:bits=2",
                  h.PromptOf(before, "and now?"), 16, false)) {
    expected += h.tokenizer.TokenBytes(token, false);
  }
  EXPECT_EQ(sink->text(), expected);
  EXPECT_TRUE(absl::IsInvalidArgument(
      h.core->MigrateSession(Migrate("s", 0, "nonsense")).status()));
}

TEST(CoreConversationTest, MigrationThatIsTooLongNamesBothNumbers) {
  Harness h;
  Talk(h, "s", 6);
  const SessionRecord before = h.Record("s");
  h.options.engine.model_fp = Sha256Of("another model");
  h.options.core.max_context = 256;
  h.Restart();
  const auto refused = h.core->MigrateSession(Migrate("s"));
  ASSERT_TRUE(absl::IsInvalidArgument(refused.status())) << refused.status();
  const std::string message(refused.status().message());
  EXPECT_THAT(message, HasSubstr(" of at most 255"));
  EXPECT_THAT(message, HasSubstr("keep_last_messages"));
  EXPECT_EQ(h.Record("s"), before);
  const auto result = h.core->MigrateSession(Migrate("s", 1));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->messages_dropped, 12u);
  EXPECT_EQ(result->session.num_messages, 1u);
  EXPECT_EQ(result->session.turn, 6u);
  ExpectGoesOn(h, "s");
}

TEST(CoreConversationTest, MigrationWaitsForNoTurn) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "go", 60);
  turn.options.ignore_eos = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  EXPECT_TRUE(absl::IsAborted(h.core->MigrateSession(Migrate("s")).status()));
  sink->Wait();
  EXPECT_TRUE(h.core->MigrateSession(Migrate("s")).ok());
  EXPECT_TRUE(absl::IsNotFound(h.core->MigrateSession(Migrate("x")).status()));
}

TEST(CoreConversationTest, FullContextGoesOnInAForkOfItsLastMessages) {
  Harness::Options options;
  options.core.max_context = 512;
  Harness h(options);
  Talk(h, "s", 4);
  const SessionRecord before = h.Record("s");
  EXPECT_TRUE(
      absl::IsInvalidArgument(h.Chat(h.Turn("s", Letters(400, 3)))->status()));
  const auto fork = h.core->ForkSession(Fork("t", "s", "f", 0, 4));
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->num_messages, 5u);
  EXPECT_EQ(fork->turn, 2u);
  EXPECT_FALSE(fork->retokenized);
  const SessionRecord record = h.Record("f");
  // Token for token what the source has of these messages.
  std::vector<TokenId> expected;
  for (const size_t i : {0u, 5u, 6u, 7u, 8u}) {
    const SessionMessage& m = before.messages[i];
    expected.insert(expected.end(), before.tokens.begin() + m.token_begin,
                    before.tokens.begin() + m.token_end);
  }
  EXPECT_EQ(record.tokens, expected);
  EXPECT_EQ(record.messages.back().content, before.messages.back().content);
  EXPECT_EQ(h.Record("s"), before);
  ExpectGoesOn(h, "f");
  // Of the first messages, the last.
  const auto both = h.core->ForkSession(Fork("t", "s", "g", 5, 2));
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(h.Record("g").messages[1].content, "question 1");
  EXPECT_EQ(both->num_messages, 3u);
}

TEST(CoreConversationTest, ForkOfAnotherModelsSession) {
  Harness h;
  Talk(h, "s", 2);
  h.options.engine.model_fp = Sha256Of("another model");
  h.Restart();
  // Whole it is a copy, to be migrated beside the first one; cut it is not.
  const auto copy = h.core->ForkSession(Fork("t", "s", "copy", 0));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE(copy->needs_migration);
  const auto cut = h.core->ForkSession(Fork("t", "s", "cut", 0, 2));
  EXPECT_TRUE(absl::IsFailedPrecondition(cut.status())) << cut.status();
  EXPECT_THAT(std::string(cut.status().message()), HasSubstr("MigrateSession"));
  ASSERT_TRUE(h.core->MigrateSession(Migrate("copy")).ok());
  EXPECT_TRUE(h.core->GetSession("t", "s", false)->needs_migration);
  ExpectGoesOn(h, "copy");
}

TEST(CoreConversationTest, ImportOnTheSameModelIsTokenExact) {
  Harness h;
  Talk(h, "s", 3);
  const SessionRecord before = h.Record("s");
  const auto document = h.core->ExportSession("t", "s", false);
  ASSERT_TRUE(document.ok()) << document.status();
  // It never goes over one that is there.
  EXPECT_TRUE(
      absl::IsAlreadyExists(h.core->ImportSession(Import(*document)).status()));
  ASSERT_TRUE(h.core->DeleteSession("t", "s").ok());
  const auto imported = h.core->ImportSession(Import(*document));
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->id, "s");
  EXPECT_FALSE(imported->retokenized);
  SessionRecord after = h.Record("s");
  EXPECT_TRUE(after.page_keys.empty());
  after.page_keys = before.page_keys;
  after.page_bytes = before.page_bytes;
  after.update_ms = before.update_ms;
  after.expire_ms = before.expire_ms;
  EXPECT_EQ(after, before);
  ExpectGoesOn(h, "s");
  const auto copy = h.core->ImportSession(Import(*document, "copy"));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(h.Record("copy").tokens, before.tokens);
}

TEST(CoreConversationTest, ImportOfTextOrOfAnotherModelIsTokenizedAnew) {
  Harness h;
  Talk(h, "s", 2);
  const SessionRecord before = h.Record("s");
  const std::string text = *h.core->ExportSession("t", "s", true);
  const std::string whole = *h.core->ExportSession("t", "s", false);
  EXPECT_LT(text.size(), whole.size());
  std::vector<TokenId> rendered;
  ASSERT_TRUE(
      Render(h.chat_template, MessagesOf(before), 0, &rendered, nullptr).ok());
  h.options.engine.model_fp = Sha256Of("another model");
  h.Restart();
  // An export of it is made wherever the session is.
  EXPECT_EQ(*h.core->ExportSession("t", "s", false), whole);
  for (const std::string& document : {text, whole}) {
    const auto imported = h.core->ImportSession(
        Import(document, absl::StrCat("of", document.size())));
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_TRUE(imported->retokenized);
    EXPECT_FALSE(imported->needs_migration);
    EXPECT_EQ(h.Record(imported->id).tokens, rendered);
    ExpectGoesOn(h, imported->id);
  }
}

TEST(CoreConversationTest, ImportedTextNeverBecomesSpecialTokens) {
  Harness h;
  Talk(h, "s", 1);
  const std::string document = *h.core->ExportSession("t", "s", false);
  // A document of this model whose user's tokens hold the end token.
  const std::string user = absl::StrCat("[", kHeader, ",", int{'u'}, ",");
  ASSERT_THAT(document, HasSubstr(user));
  const std::string forged =
      absl::StrReplaceAll(document, {{user, absl::StrCat(user, kEnd, ",")}});
  const auto imported = h.core->ImportSession(Import(forged, "forged"));
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_TRUE(imported->retokenized);
  std::vector<TokenId> rendered;
  ASSERT_TRUE(
      Render(h.chat_template, MessagesOf(h.Record("s")), 0, &rendered, nullptr)
          .ok());
  EXPECT_EQ(h.Record("forged").tokens, rendered);
  // A token that the model has not.
  const auto impossible = h.core->ImportSession(Import(
      absl::StrReplaceAll(document, {{user, absl::StrCat(user, kVocab, ",")}}),
      "impossible"));
  EXPECT_TRUE(absl::IsInvalidArgument(impossible.status()));
  EXPECT_THAT(std::string(impossible.status().message()),
              HasSubstr(absl::StrCat(kVocab)));
}

TEST(CoreConversationTest, ImportChecksWhatADocumentHolds) {
  Harness h;
  const auto refused = [&](std::string_view more, std::string id,
                           std::string_view text) {
    const auto imported = h.core->ImportSession(
        Import(absl::StrCat(R"({"format":"xcache-session","version":1,)",
                            std::string(more), "}"),
               std::move(id)));
    EXPECT_TRUE(absl::IsInvalidArgument(imported.status()))
        << imported.status();
    EXPECT_THAT(std::string(imported.status().message()),
                HasSubstr(std::string(text)));
  };
  refused(R"("messages":[{"role":"user","content":"a"},)"
          R"({"role":"user","content":"b"}])",
          "a", "out of place");
  refused(R"("messages":[],"id":"a/b")", "", "a session's id must be");
  refused(R"("messages":[])", "a b", "a session's id must be");
  refused(R"("messages":[],"ttl_ms":9000000000000000)", "a", "ttl must be");
  refused(absl::StrCat(R"("messages":[{"role":"user","content":")",
                       Letters(8192, 1), R"("}])"),
          "a", "too long: ");
  EXPECT_TRUE(h.store.sessions().All().empty());
  // The least that is one; a time to come is none that it was made at.
  const auto imported = h.core->ImportSession(
      Import(R"({"format":"xcache-session","version":1,"messages":[],)"
             R"("create_time_ms":9000000000000})"));
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->id.size(), 32u);
  EXPECT_LE(imported->create_time_us, imported->update_time_us);
}

TEST(CoreConversationTest, RegeneratedAnswerReplacesTheLastOne) {
  Harness h;
  Talk(h, "s", 3);
  const SessionRecord before = h.Record("s");
  ChatTurn turn;
  turn.tenant = "t";
  turn.session_id = "s";
  turn.regenerate = true;
  turn.expected_turn = 3;
  turn.options.max_tokens = 200;
  turn.options.ignore_eos = true;
  const auto sink = h.Chat(turn);
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  // Answered from the tokens before the answer, and only the answer changed.
  const uint32_t end = before.messages[5].token_end;
  std::vector<TokenId> prompt(before.tokens.begin(),
                              before.tokens.begin() + end);
  const auto header = h.chat_template.AssistantHeader();
  prompt.insert(prompt.end(), header.begin(), header.end());
  EXPECT_EQ(sink->final().prompt_tokens, prompt.size());
  EXPECT_GE(sink->final().reused.total(), prompt.size() / 64 * 64);
  const SessionRecord after = h.Record("s");
  EXPECT_EQ(after.turn, 4u);
  EXPECT_EQ(sink->final().turn, 4u);
  ASSERT_EQ(after.messages.size(), before.messages.size());
  for (size_t i = 0; i + 1 < after.messages.size(); ++i) {
    EXPECT_EQ(after.messages[i], before.messages[i]);
  }
  EXPECT_EQ(after.messages.back().content, sink->text());
  EXPECT_EQ(after.messages.back().token_begin, end);
  EXPECT_EQ(after.messages.back().token_end, after.tokens.size());
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), after.tokens.begin()));
  EXPECT_GT(after.tokens.size(), before.tokens.size());
  // A retry of the same turn is not applied again.
  EXPECT_TRUE(absl::IsAborted(h.Chat(turn)->status()));
  ExpectGoesOn(h, "s");
  h.Restart();
  ExpectGoesOn(h, "s");
}

TEST(CoreConversationTest, ShorterAnswerLeavesNoPageOfTheLongerOne) {
  Harness h;
  h.NewSession("s", Letters(100, 1));
  ChatTurn longer = h.Turn("s", "go", 300);
  longer.options.ignore_eos = true;
  ASSERT_TRUE(h.Chat(longer)->status().ok());
  ChatTurn again;
  again.tenant = "t";
  again.session_id = "s";
  again.regenerate = true;
  again.options.max_tokens = 2;
  again.options.ignore_eos = true;
  ASSERT_TRUE(h.Chat(again)->status().ok());
  const SessionRecord record = h.Record("s");
  EXPECT_LE(record.page_keys.size(), record.tokens.size() / 64);
  h.Restart();
  ExpectGoesOn(h, "s");
}

TEST(CoreConversationTest, RegenerateThatFailsKeepsTheOldAnswer) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  Talk(h, "s", 1);
  const SessionRecord before = h.Record("s");
  ChatTurn turn;
  turn.tenant = "t";
  turn.session_id = "s";
  turn.regenerate = true;
  turn.options.max_tokens = 4000;
  turn.options.ignore_eos = true;
  turn.cancellation = std::make_shared<Cancellation>();
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  turn.cancellation->Cancel();
  sink->Wait();
  EXPECT_TRUE(absl::IsCancelled(sink->status())) << sink->status();
  EXPECT_EQ(h.Record("s"), before);
  ExpectGoesOn(h, "s");
  // What it cannot be asked for.
  turn.cancellation = nullptr;
  turn.messages = {{Role::kUser, "hi"}};
  EXPECT_TRUE(absl::IsInvalidArgument(h.Chat(turn)->status()));
  turn.messages.clear();
  turn.session_id.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(h.Chat(turn)->status()));
  h.NewSession("empty", "be kind");
  turn.session_id = "empty";
  EXPECT_TRUE(absl::IsFailedPrecondition(h.Chat(turn)->status()));
}

TEST(CoreConversationTest, ForkThatEndsWithAQuestionIsAnswered) {
  Harness h;
  Talk(h, "s", 2);
  ASSERT_TRUE(h.core->ForkSession(Fork("t", "s", "f", 4)).ok());
  ChatTurn turn;
  turn.tenant = "t";
  turn.session_id = "f";
  turn.regenerate = true;
  turn.options.max_tokens = 16;
  const auto sink = h.Chat(turn);
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(h.Record("f").messages.size(), 5u);
  EXPECT_EQ(h.Record("f").messages.back().content,
            h.Record("s").messages.back().content);
}

TEST(CoreConversationTest, PartialAnswerIsKeptWhereItIsAskedFor) {
  for (const bool by_deadline : {false, true}) {
    Harness::Options options;
    options.engine.step_delay = std::chrono::milliseconds(2);
    Harness h(options);
    Talk(h, "s", 1);
    const SessionRecord before = h.Record("s");
    ChatTurn turn = h.Turn("s", "go", 4000);
    turn.options.ignore_eos = true;
    turn.keep_partial = true;
    turn.cancellation = std::make_shared<Cancellation>();
    if (by_deadline) {
      turn.deadline =
          std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
    }
    const std::vector<TokenId> prompt = h.PromptOf(before, "go");
    const auto sink = h.StartChat(turn);
    sink->WaitForDelta();
    if (!by_deadline) turn.cancellation->Cancel();
    sink->Wait();
    EXPECT_EQ(sink->status().code(), by_deadline
                                         ? absl::StatusCode::kDeadlineExceeded
                                         : absl::StatusCode::kCancelled)
        << sink->status();
    const FinalInfo final = sink->final();
    EXPECT_EQ(final.finish_reason, FinishReason::kCancelled);
    EXPECT_EQ(final.turn, 2u);
    EXPECT_EQ(final.durability, Durability::kLocal);
    // Token for token what was generated, then the template's end.
    const SessionRecord after = h.Record("s");
    std::vector<TokenId> expected = prompt;
    const auto answer =
        FakeGreedy(h.options.engine, kCodec, prompt,
                   static_cast<int>(final.generated_tokens), true);
    expected.insert(expected.end(), answer.begin(), answer.end());
    const auto end = h.chat_template.AssistantEnd(false);
    expected.insert(expected.end(), end.begin(), end.end());
    EXPECT_EQ(after.tokens, expected);
    EXPECT_EQ(after.messages.back().content, sink->text());
    EXPECT_EQ(after.turn, 2u);
    ExpectGoesOn(h, "s");
  }
}

TEST(CoreConversationTest, PartialAnswerIsKeptWhenTheServerEnds) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "go", 4000);
  turn.options.ignore_eos = true;
  turn.keep_partial = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  EXPECT_EQ(h.core->Drain(std::chrono::steady_clock::now()), 1);
  sink->Wait();
  EXPECT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->final().finish_reason, FinishReason::kCancelled);
  h.Restart();
  EXPECT_EQ(h.Record("s").turn, 1u);
  ExpectGoesOn(h, "s");
}

TEST(CoreConversationTest, NothingIsKeptOfADeletedSessionOrBeforeAToken) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "go", 4000);
  turn.options.ignore_eos = true;
  turn.keep_partial = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  EXPECT_TRUE(h.core->DeleteSession("t", "s").ok());
  sink->Wait();
  EXPECT_TRUE(absl::IsCancelled(sink->status())) << sink->status();
  EXPECT_TRUE(h.store.sessions().All().empty());
  h.NewSession("n");
  turn.session_id = "n";
  turn.deadline = std::chrono::steady_clock::now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(h.Chat(turn)->status()));
  EXPECT_EQ(h.Record("n").turn, 0u);
  turn.session_id.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(h.Chat(turn)->status()));
}

}  // namespace
}  // namespace xcache::testing
