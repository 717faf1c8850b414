// Sessions: token-exact history, whole turns, who may see and change what.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using ::testing::HasSubstr;

TEST(CoreSessionTest, HistoryIsExactlyWhatWasRenderedAndSampled) {
  Harness h;
  h.NewSession("s", "be brief");
  std::vector<TokenId> expected =
      h.chat_template.RenderMessage({Role::kSystem, "be brief"}, 0).value();
  EXPECT_EQ(h.Record("s").tokens, expected);
  for (int turn = 1; turn <= 6; ++turn) {
    const std::string text = "question " + std::to_string(turn);
    const std::vector<TokenId> prompt = h.PromptOf(h.Record("s"), text);
    const auto sink = h.Chat(h.Turn("s", text, 12));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    const std::vector<TokenId> answer =
        FakeGreedy(h.options.engine, kCodec, prompt, 12, false);
    expected = prompt;
    expected.insert(expected.end(), answer.begin(), answer.end());
    // The template's end follows unless the model wrote it; another end token
    // gives way to it.
    if (answer.back() == kOtherEnd) expected.pop_back();
    if (answer.back() != kEnd) expected.push_back(kEnd);
    expected.push_back('\n');
    const SessionRecord record = h.Record("s");
    EXPECT_EQ(record.tokens, expected);
    EXPECT_EQ(record.turn, static_cast<uint64_t>(turn));
    ASSERT_EQ(record.messages.size(), static_cast<size_t>(1 + 2 * turn));
    EXPECT_EQ(record.messages.back().content, sink->text());
    uint32_t end = 0;
    for (const SessionMessage& message : record.messages) {
      EXPECT_EQ(message.token_begin, end);
      end = message.token_end;
    }
    EXPECT_EQ(end, record.tokens.size());
    const FinalInfo final = sink->final();
    EXPECT_EQ(final.durability, Durability::kLocal);
    EXPECT_EQ(final.prompt_tokens, prompt.size());
    EXPECT_EQ(final.generated_tokens, answer.size());
    const bool ended = answer.back() == kEnd || answer.back() == kOtherEnd;
    EXPECT_EQ(final.finish_reason,
              ended ? FinishReason::kEnd : FinishReason::kMaxTokens);
  }
}

TEST(CoreSessionTest, HistoryEndsWithTheTextBeforeAStopString) {
  Harness h;
  h.NewSession("s");
  const std::vector<TokenId> prompt = h.PromptOf(h.Record("s"), "go");
  const std::string greedy = h.Greedy(prompt, 40);
  ASSERT_GT(greedy.size(), 12u);
  ChatTurn turn = h.Turn("s", "go", 40);
  turn.options.stop = {greedy.substr(8, 3)};
  const auto sink = h.Chat(turn);
  const std::string before = greedy.substr(0, greedy.find(greedy.substr(8, 3)));
  EXPECT_EQ(sink->text(), before);
  EXPECT_EQ(sink->final().finish_reason, FinishReason::kStop);
  EXPECT_EQ(sink->final().stop, turn.options.stop[0]);
  std::vector<TokenId> expected = prompt;
  for (const char c : before) expected.push_back(c);
  expected.push_back(kEnd);
  expected.push_back('\n');
  const SessionRecord record = h.Record("s");
  EXPECT_EQ(record.tokens, expected);
  EXPECT_EQ(record.messages.back().content, before);
  EXPECT_EQ(h.Chat(h.Turn("s", "on"))->text(),
            h.Greedy(h.PromptOf(record, "on")));
}

TEST(CoreSessionTest, TurnsAreAppliedOnce) {
  Harness h;
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "one");
  turn.expected_turn = 0;
  EXPECT_TRUE(h.Chat(turn)->status().ok());
  const SessionRecord after = h.Record("s");
  const auto retry = h.Chat(turn);
  EXPECT_TRUE(absl::IsAborted(retry->status())) << retry->status();
  EXPECT_EQ(h.Record("s"), after);
}

TEST(CoreSessionTest, TwoTurnsAtOnceAreAborted) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(5);
  Harness h(options);
  h.NewSession("s");
  const auto first = h.StartChat(h.Turn("s", "one", 10));
  const auto second = h.Chat(h.Turn("s", "two", 10));
  EXPECT_TRUE(absl::IsAborted(second->status())) << second->status();
  first->Wait();
  EXPECT_TRUE(first->status().ok());
  EXPECT_TRUE(h.Chat(h.Turn("s", "two", 10))->status().ok());
}

TEST(CoreSessionTest, OthersSessionsAreNotFound) {
  Harness h;
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "hi");
  turn.tenant = "other";
  EXPECT_TRUE(absl::IsNotFound(h.Chat(turn)->status()));
  EXPECT_TRUE(
      absl::IsNotFound(h.core->GetSession("other", "s", true).status()));
  EXPECT_TRUE(absl::IsNotFound(h.core->DeleteSession("other", "s")));
  EXPECT_TRUE(absl::IsNotFound(
      h.core->ForkSession(Fork("other", "s", "", 0)).status()));
  EXPECT_TRUE(absl::IsNotFound(
      h.core->UpdateSession("other", "s", Pinned(true)).status()));
  EXPECT_TRUE(absl::IsNotFound(h.core->FlushSession("other", "s").status()));
  EXPECT_TRUE(h.core->ListSessions("other", 0, "")->sessions.empty());
  EXPECT_TRUE(absl::IsNotFound(h.Chat(h.Turn("none", "hi"))->status()));
}

TEST(CoreSessionTest, ContextTooLongNamesBothNumbers) {
  Harness::Options options;
  options.core.max_context = 256;
  Harness h(options);
  h.NewSession("s");
  const auto sink = h.Chat(h.Turn("s", Letters(300, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(sink->status()));
  EXPECT_THAT(std::string(sink->status().message()), HasSubstr("306"));
  EXPECT_THAT(std::string(sink->status().message()), HasSubstr("255"));
  EXPECT_EQ(h.Record("s").turn, 0u);
  // What fits is answered until the context is full.
  ChatTurn turn = h.Turn("s", Letters(240, 1), 100);
  turn.options.ignore_eos = true;
  const auto full = h.Chat(turn);
  EXPECT_EQ(full->final().finish_reason, FinishReason::kContext);
  EXPECT_EQ(full->final().generated_tokens, 256 - 246u);
}

TEST(CoreSessionTest, TextThatIsTooLongByItsBytesIsNotTokenized) {
  Harness::Options options;
  options.core.max_context = 256;
  Harness h(options);
  h.tokenizer.most_bytes = 4;
  h.NewSession("s");
  // Tokens of 4 bytes would fit: it is tokenized, and the count is exact.
  const auto counted = h.Chat(h.Turn("s", Letters(1020, 1)));
  EXPECT_THAT(std::string(counted->status().message()), HasSubstr("1026"));
  const auto refused = h.Chat(h.Turn("s", Letters(1024, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(refused->status()));
  EXPECT_THAT(
      std::string(refused->status().message()),
      HasSubstr("1024 bytes of text are at least 256 tokens, of at most "
                "255"));
  // What a template trims is no reason.
  const auto trimmed = h.Chat(h.Turn("s", std::string(1024, ' ')));
  EXPECT_THAT(std::string(trimmed->status().message()), HasSubstr("1030"));
  CreateSessionOptions create;
  create.system_prompt = std::string(1024, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(h.core->CreateSession(create).status()));
  EXPECT_EQ(h.Record("s").turn, 0u);
}

TEST(CoreSessionTest, InvalidRequestsSayWhy) {
  Harness h;
  h.NewSession("s");
  const auto refused = [&](ChatTurn turn) {
    return absl::IsInvalidArgument(h.Chat(std::move(turn))->status());
  };
  ChatTurn turn = h.Turn("s", "hi");
  turn.messages.clear();
  EXPECT_TRUE(refused(turn));
  turn.messages = {{Role::kAssistant, "hi"}};
  EXPECT_TRUE(refused(turn));
  turn.messages = {{Role::kUser, "a"}, {Role::kUser, "b"}};
  EXPECT_TRUE(refused(turn));
  EXPECT_TRUE(refused(h.Turn("s", "hi", 0)));
  turn = h.Turn("s", "hi");
  turn.options.stop = {""};
  EXPECT_TRUE(refused(turn));
  turn.options.stop.assign(17, "x");
  EXPECT_TRUE(refused(turn));
  turn.options.stop = {std::string(257, 'x')};
  EXPECT_TRUE(refused(turn));
  turn = h.Turn("s", "hi");
  turn.options.num_logprobs = 22;
  EXPECT_TRUE(refused(turn));
  turn = h.Turn("s", "hi");
  turn.options.sampling.top_p = 2;
  EXPECT_TRUE(refused(turn));
  GenerateRequest generate;
  EXPECT_TRUE(absl::IsInvalidArgument(h.Generate(generate)->status()));
  generate.prompt = {kVocab};
  EXPECT_TRUE(absl::IsInvalidArgument(h.Generate(generate)->status()));
  // Nothing of all that keeps the session busy.
  EXPECT_TRUE(h.Chat(h.Turn("s", "hi"))->status().ok());
}

TEST(CoreSessionTest, CancelledTurnRollsBack) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s", Letters(200, 5));
  ASSERT_TRUE(h.Chat(h.Turn("s", "one", 4))->status().ok());
  const SessionRecord before = h.Record("s");
  ChatTurn turn = h.Turn("s", "two", 1000);
  turn.options.ignore_eos = true;
  turn.cancellation = std::make_shared<Cancellation>();
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  turn.cancellation->Cancel();
  sink->Wait();
  EXPECT_TRUE(absl::IsCancelled(sink->status())) << sink->status();
  EXPECT_EQ(h.Record("s"), before);
  const auto next = h.Chat(h.Turn("s", "three", 8));
  EXPECT_EQ(next->text(), h.Greedy(h.PromptOf(before, "three"), 8));
  EXPECT_EQ(next->final().turn, 2u);
  EXPECT_GE(next->final().reused.device, before.tokens.size() / 64 * 64);
}

TEST(CoreSessionTest, DeadlineEndsATurnAndRollsItBack) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "two", 100000);
  turn.options.max_tokens = 4000;
  turn.options.ignore_eos = true;
  turn.deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  const auto sink = h.Chat(turn);
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->status())) << sink->status();
  EXPECT_EQ(h.Record("s").turn, 0u);
  turn.deadline = std::chrono::steady_clock::now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(h.Chat(turn)->status()));
}

TEST(CoreSessionTest, FinalMessageFollowsTheCommit) {
  Harness h;
  h.NewSession("s");
  h.store.sessions().set_commit_delay(std::chrono::milliseconds(30));
  const int64_t before = h.store.sessions().commits();
  const auto sink = h.StartChat(h.Turn("s", "hi"));
  sink->Wait();
  EXPECT_EQ(h.store.sessions().commits(), before + 1);
  EXPECT_EQ(sink->final().durability, Durability::kLocal);
  EXPECT_GE(sink->final().timings.commit_us, 30000);
}

TEST(CoreSessionTest, FullDiskIsNotDurableAndServes) {
  for (const absl::Status& status : {absl::ResourceExhaustedError("disk full"),
                                     absl::UnavailableError("I/O error")}) {
    Harness h;
    h.NewSession("s");
    h.store.sessions().SetCommitStatus(status);
    const auto sink = h.Chat(h.Turn("s", "hi"));
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->final().durability, Durability::kMemory);
    EXPECT_EQ(sink->final().turn, 1u);
    EXPECT_EQ(h.Count(CoreCounter::kCommitFailures), 1u);
    EXPECT_EQ(h.Chat(h.Turn("s", "hi"))->final().turn, 2u);
    EXPECT_TRUE(h.core->CreateSession(Harness::Named("x")).ok());
  }
}

TEST(CoreSessionTest, NoMemoryForASessionIsToTryAgain) {
  Harness h;
  h.NewSession("s");
  h.store.sessions().SetCommitError(absl::ResourceExhaustedError("no memory"));
  const auto sink = h.Chat(h.Turn("s", "hi"));
  EXPECT_TRUE(absl::IsResourceExhausted(sink->status())) << sink->status();
  EXPECT_GT(sink->final().retry_after_ms, 0);
  EXPECT_EQ(sink->final().durability, Durability::kNone);
}

TEST(CoreSessionTest, CorruptRecordIsDataLossForThatSessionAlone) {
  Harness h;
  h.NewSession("s");
  h.store.sessions().SetLoadStatus(absl::DataLossError("manifest damaged"));
  EXPECT_TRUE(absl::IsDataLoss(h.Chat(h.Turn("s", "hi"))->status()));
  EXPECT_EQ(h.Count(CoreCounter::kSessionsCorrupt), 1u);
  EXPECT_TRUE(h.Chat(h.Turn("", "hi"))->status().ok());
  EXPECT_TRUE(h.core->DeleteSession("t", "s").ok());
}

TEST(CoreSessionTest, SessionOfAnotherCodecFingerprintIsRefused) {
  Harness h;
  h.NewSession("s");
  h.options.engine.model_fp = Sha256Of("another model");
  h.Restart();
  const auto sink = h.Chat(h.Turn("s", "hi"));
  EXPECT_TRUE(absl::IsFailedPrecondition(sink->status())) << sink->status();
  EXPECT_THAT(std::string(sink->status().message()), HasSubstr(kCodec));
}

TEST(CoreSessionTest, TextOfASessionOfAnotherModelIsShownAndDeleted) {
  Harness h;
  h.NewSession("s", "be kind");
  const std::string answer = h.Chat(h.Turn("s", "hello"))->text();
  EXPECT_FALSE(h.core->GetSession("t", "s", false)->needs_migration);
  const Digest old_model = h.core->model().model_fp;
  h.options.engine.model_fp = Sha256Of("another model");
  h.Restart();
  const auto shown = h.core->GetSession("t", "s", true);
  ASSERT_TRUE(shown.ok()) << shown.status();
  ASSERT_EQ(shown->messages.size(), 3u);
  EXPECT_EQ(shown->messages[2].content, answer);
  EXPECT_TRUE(shown->needs_migration);
  EXPECT_EQ(shown->model_fp, old_model);
  const auto list = h.core->ListSessions("t", 0, "");
  ASSERT_EQ(list->sessions.size(), 1u);
  EXPECT_TRUE(list->sessions[0].needs_migration);
  // A turn says what both models are and what helps, and changes nothing.
  const SessionRecord before = h.Record("s");
  const auto sink = h.Chat(h.Turn("s", "hi"));
  EXPECT_TRUE(absl::IsFailedPrecondition(sink->status())) << sink->status();
  const std::string message(sink->status().message());
  EXPECT_THAT(message, HasSubstr(ToHex(old_model)));
  EXPECT_THAT(message, HasSubstr(ToHex(Sha256Of("another model"))));
  EXPECT_THAT(message, HasSubstr("MigrateSession"));
  EXPECT_EQ(h.Record("s"), before);
  EXPECT_TRUE(h.core->FlushSession("t", "s").ok());
  EXPECT_TRUE(h.core->UpdateSession("t", "s", Pinned(true))->needs_migration);
  EXPECT_TRUE(h.core->DeleteSession("t", "s").ok());
}

TEST(CoreSessionTest, SessionKeepsItsOwnCodec) {
  Harness h;
  CreateSessionOptions create = Harness::Named("s");
  create.codec = "fake:bits=2";
  create.system_prompt = Letters(200, 1);
  ASSERT_EQ(h.core->CreateSession(create)->codec, "fake:bits=2");
  create.id = "wrong";
  create.codec = "nonsense";
  EXPECT_TRUE(absl::IsInvalidArgument(h.core->CreateSession(create).status()));
  h.Restart();
  const auto prompt = h.PromptOf(h.Record("s"), "hi");
  std::string expected;
  for (const TokenId token :
       FakeGreedy(h.options.engine, "fake:bits=2", prompt, 16, false)) {
    expected += h.tokenizer.TokenBytes(token, false);
  }
  EXPECT_EQ(h.Chat(h.Turn("s", "hi"))->text(), expected);
  EXPECT_NE(expected, h.Greedy(prompt));
}

TEST(CoreSessionTest, OtherNumericsStillUseThePages) {
  Harness h;
  h.options.core.restore = ServerCoreOptions::Restore::kAlways;
  h.NewSession("s", Letters(300, 1));
  ASSERT_TRUE(h.Chat(h.Turn("s", "hi"))->status().ok());
  h.options.engine.numerics_id = "fake-2";
  h.Restart();
  const auto sink = h.Chat(h.Turn("s", "again"));
  EXPECT_GE(sink->final().reused.disk, 256u);
  EXPECT_EQ(h.Record("s").numerics_id, "fake-2");
}

TEST(CoreSessionTest, ForkHoldsTheFirstMessages) {
  Harness h;
  h.NewSession("s", Letters(200, 1));
  ASSERT_TRUE(h.Chat(h.Turn("s", "one"))->status().ok());
  const SessionRecord one = h.Record("s");
  ASSERT_TRUE(h.Chat(h.Turn("s", "two"))->status().ok());
  const auto fork = h.core->ForkSession(Fork("t", "s", "f", 3));
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->num_messages, 3u);
  EXPECT_EQ(fork->turn, 1u);
  EXPECT_EQ(h.Record("f").tokens, one.tokens);
  const auto sink = h.Chat(h.Turn("f", "instead"));
  EXPECT_EQ(sink->text(), h.Greedy(h.PromptOf(one, "instead")));
  EXPECT_GE(sink->final().reused.device, one.tokens.size() / 64 * 64);
  EXPECT_EQ(h.Record("s").turn, 2u);
  EXPECT_EQ(h.core->ForkSession(Fork("t", "s", "", 0))->num_messages, 5u);
  EXPECT_TRUE(absl::IsInvalidArgument(
      h.core->ForkSession(Fork("t", "s", "g", 6)).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(
      h.core->ForkSession(Fork("t", "s", "f", 1)).status()));
}

TEST(CoreSessionTest, CreateChecksItsArguments) {
  Harness h;
  const auto create = [&](std::string id, std::string title) {
    CreateSessionOptions options = Harness::Named(std::move(id));
    options.title = std::move(title);
    return h.core->CreateSession(options);
  };
  EXPECT_TRUE(create("a", "A title").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(create("a", "").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(create("a/b", "").status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(create(std::string(129, 'a'), "").status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(create("b", std::string(257, 'a')).status()));
  const auto made = create("", "");
  ASSERT_TRUE(made.ok());
  EXPECT_FALSE(made->id.empty());
  EXPECT_EQ(h.core->GetSession("t", "a", false)->title, "A title");
}

TEST(CoreSessionTest, ListsInPages) {
  Harness h;
  for (int i = 0; i < 5; ++i) h.NewSession("s" + std::to_string(i));
  std::vector<std::string> ids;
  std::string token;
  do {
    const auto page = h.core->ListSessions("t", 2, token);
    ASSERT_TRUE(page.ok());
    for (const SessionInfo& info : page->sessions) ids.push_back(info.id);
    token = page->next_page_token;
  } while (!token.empty());
  EXPECT_THAT(ids,
              ::testing::UnorderedElementsAre("s0", "s1", "s2", "s3", "s4"));
  EXPECT_EQ(h.core->ListSessions("t", 1000, "")->sessions.size(), 5u);
  for (const int page_size : {-1, 1001}) {
    const absl::Status refused =
        h.core->ListSessions("t", page_size, "").status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  }
}

TEST(CoreSessionTest, DeleteEndsARunningTurn) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "go", 4000);
  turn.options.ignore_eos = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  EXPECT_TRUE(h.core->DeleteSession("t", "s").ok());
  sink->Wait();
  EXPECT_TRUE(absl::IsCancelled(sink->status())) << sink->status();
  EXPECT_TRUE(h.store.sessions().All().empty());
  EXPECT_TRUE(absl::IsNotFound(h.core->DeleteSession("t", "s")));
}

TEST(CoreSessionTest, ExpiredSessionsGoAndPinnedOnesStay) {
  auto now_ms = std::make_shared<std::atomic<int64_t>>(1000000);
  Harness::Options options;
  options.core.wall_clock_ms = [now_ms] { return now_ms->load(); };
  options.core.default_ttl = std::chrono::seconds(10);
  options.core.sweep_interval = std::chrono::milliseconds(5);
  Harness h(options);
  h.NewSession("gone");
  h.NewSession("pinned");
  h.NewSession("used");
  CreateSessionOptions forever = Harness::Named("forever");
  forever.ttl = std::chrono::seconds(0);
  ASSERT_TRUE(h.core->CreateSession(forever).ok());
  EXPECT_TRUE(h.core->UpdateSession("t", "pinned", Pinned(true))->pinned);
  EXPECT_EQ(h.core->GetSession("t", "gone", false)->expire_time_us,
            1010000 * int64_t{1000});
  EXPECT_EQ(h.core->GetSession("t", "pinned", false)->expire_time_us, 0);
  *now_ms += 6000;
  ASSERT_TRUE(h.Chat(h.Turn("used", "hi"))->status().ok());
  *now_ms += 6000;
  EXPECT_TRUE(absl::IsNotFound(h.Chat(h.Turn("gone", "hi"))->status()));
  EXPECT_TRUE(h.core->GetSession("t", "pinned", false).ok());
  EXPECT_TRUE(h.core->GetSession("t", "used", false).ok());
  EXPECT_TRUE(h.core->GetSession("t", "forever", false).ok());
  while (h.Count(CoreCounter::kSessionsExpired) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(h.store.sessions().All().size(), 3u);
}

TEST(CoreSessionTest, PinWhileATurnRunsIsKept) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "go", 30);
  turn.options.ignore_eos = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  EXPECT_TRUE(h.core->UpdateSession("t", "s", Pinned(true))->pinned);
  EXPECT_EQ(h.Record("s").turn, 0u);
  sink->Wait();
  EXPECT_TRUE(h.Record("s").pinned);
  EXPECT_EQ(h.Record("s").turn, 1u);
}

TEST(CoreSessionTest, UpdateWhileATurnRunsIsKept) {
  auto now_ms = std::make_shared<std::atomic<int64_t>>(1000000);
  Harness::Options options;
  options.core.wall_clock_ms = [now_ms] { return now_ms->load(); };
  options.core.monotonic_clock_ms = options.core.wall_clock_ms;
  options.engine.step_delay = std::chrono::milliseconds(2);
  Harness h(options);
  h.NewSession("s");
  ChatTurn turn = h.Turn("s", "go", 30);
  turn.options.ignore_eos = true;
  const auto sink = h.StartChat(turn);
  sink->WaitForDelta();
  SessionUpdate update;
  update.title = "later";
  update.ttl = std::chrono::seconds(60);
  ASSERT_TRUE(h.core->UpdateSession("t", "s", update).ok());
  SessionUpdate again;
  again.title = "last";
  const auto info = h.core->UpdateSession("t", "s", again);
  EXPECT_EQ(info->title, "last");
  EXPECT_EQ(info->expire_time_us, (1000000 + 60000) * int64_t{1000});
  EXPECT_EQ(h.Record("s").turn, 0u);
  *now_ms += 5000;
  sink->Wait();
  const SessionRecord record = h.Record("s");
  EXPECT_EQ(record.turn, 1u);
  EXPECT_EQ(record.title, "last");
  EXPECT_EQ(record.expire_ms, 1005000 + 60000);
}

TEST(CoreSessionTest, UpdatesCountTheTimeToLiveFromNow) {
  auto now_ms = std::make_shared<std::atomic<int64_t>>(1000000);
  Harness::Options options;
  options.core.wall_clock_ms = [now_ms] { return now_ms->load(); };
  options.core.monotonic_clock_ms = options.core.wall_clock_ms;
  options.core.default_ttl = std::chrono::seconds(10);
  Harness h(options);
  h.NewSession("s");
  ASSERT_TRUE(h.core->UpdateSession("t", "s", Pinned(true)).ok());
  *now_ms += 1000 * 1000;
  // Long past its time, which it had while it was pinned: it is not gone.
  ASSERT_TRUE(h.core->UpdateSession("t", "s", Pinned(false)).ok());
  const auto info = h.core->GetSession("t", "s", false);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->expire_time_us, 2010000 * int64_t{1000});
  SessionUpdate title;
  title.title = "a name";
  *now_ms += 5000;
  EXPECT_EQ(h.core->UpdateSession("t", "s", title)->expire_time_us,
            2010000 * int64_t{1000});
  SessionUpdate forever;
  forever.ttl = std::chrono::seconds(0);
  EXPECT_EQ(h.core->UpdateSession("t", "s", forever)->expire_time_us, 0);
}

TEST(CoreSessionTest, UpdateChecksItsArguments) {
  Harness h;
  h.NewSession("s");
  const auto update = [&](std::string title, int64_t ttl_ms) {
    SessionUpdate u;
    u.title = std::move(title);
    u.ttl = std::chrono::milliseconds(ttl_ms);
    return h.core->UpdateSession("t", "s", u).status();
  };
  const SessionRecord before = h.Record("s");
  EXPECT_TRUE(absl::IsInvalidArgument(update(std::string(257, 'x'), 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(update("\xff", 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(update("", -1)));
  EXPECT_TRUE(absl::IsInvalidArgument(update("", int64_t{1} << 62)));
  EXPECT_EQ(h.Record("s"), before);
  // What could not even be kept in memory is not said to be done.
  h.store.sessions().SetCommitError(absl::ResourceExhaustedError("no memory"));
  EXPECT_TRUE(absl::IsResourceExhausted(update("a", 1)));
}

// Whoever calls, and whatever front end checked before.
TEST(CoreSessionTest, AnIdThatNoSessionMayHaveIsSaidByEveryMethod) {
  Harness h;
  for (const std::string& id :
       {std::string("a/b"), std::string(129, 'a'), std::string("\xff\n")}) {
    for (const absl::Status& status :
         {h.core->CreateSession(Harness::Named(id)).status(),
          h.core->GetSession("t", id, true).status(),
          h.core->GetSession("t", id, false).status(),
          h.core->DeleteSession("t", id),
          h.core->ForkSession(Fork("t", id, "new", 0)).status(),
          h.core->ForkSession(Fork("t", "s", id, 0)).status(),
          h.core->MigrateSession({.tenant = "t", .id = id, .codec = ""})
              .status(),
          h.core->ExportSession("t", id, false).status(),
          h.core->UpdateSession("t", id, Pinned(true)).status(),
          h.core->FlushSession("t", id).status(),
          h.Chat(h.Turn(id, "hi"))->status()}) {
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_NE(std::string(status.message()).find(absl::StrCat(id.size())),
                std::string::npos)
          << status;
    }
  }
  ChatTurn turn = h.Turn("", "hi");
  turn.expected_turn = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(h.Chat(turn)->status()));
}

TEST(CoreSessionTest, DurabilityIsWhatTheDiskTook) {
  Harness h;
  const auto on_disk = h.core->CreateSession(Harness::Named("a"));
  EXPECT_EQ(on_disk->durability, Durability::kLocal);
  h.store.sessions().SetCommitStatus(absl::UnavailableError("I/O error"));
  const auto in_memory = h.core->CreateSession(Harness::Named("b"));
  EXPECT_EQ(in_memory->durability, Durability::kMemory);
  EXPECT_EQ(h.core->UpdateSession("t", "b", Pinned(true))->durability,
            Durability::kMemory);
}

TEST(CoreSessionTest, FlushGivesMemoryBack) {
  Harness h;
  h.options.core.restore = ServerCoreOptions::Restore::kAlways;
  h.options.core.answers_bytes = 0;
  h.Restart();
  h.NewSession("s", Letters(500, 1));
  ASSERT_TRUE(h.Chat(h.Turn("s", "hi"))->status().ok());
  EXPECT_GT(h.engine->live_bytes(), 0);
  ASSERT_TRUE(h.core->FlushSession("t", "s").ok());
  EXPECT_EQ(h.engine->live_bytes(), 0);
  EXPECT_EQ(h.memory.used_bytes(), 0);
  EXPECT_FALSE(h.core->GetSession("t", "s", false)->in_memory);
  EXPECT_GE(h.Chat(h.Turn("s", "again"))->final().reused.disk, 448u);
}

TEST(CoreSessionTest, GetShowsMessages) {
  Harness h;
  h.NewSession("s", "be kind");
  const auto sink = h.Chat(h.Turn("s", "hello"));
  const auto info = h.core->GetSession("t", "s", true);
  ASSERT_TRUE(info.ok());
  ASSERT_EQ(info->messages.size(), 3u);
  EXPECT_EQ(info->messages[0].content, "be kind");
  EXPECT_EQ(info->messages[1].content, "hello");
  EXPECT_EQ(info->messages[2].content, sink->text());
  EXPECT_EQ(info->messages[2].role, Role::kAssistant);
  EXPECT_TRUE(h.core->GetSession("t", "s", false)->messages.empty());
}

}  // namespace
}  // namespace xcache::testing
