#include "client/xcache_client.h"

#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "fake_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ClientTest : public ::testing::Test {
 protected:
  std::unique_ptr<Client> Connect(ClientOptions options = {}) {
    options.address = service_.address();
    auto client = Client::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  std::unique_ptr<Client> WithSession(ClientOptions options = {}) {
    auto client = Connect(options);
    EXPECT_TRUE(client->CreateSession({.id = "s"}).ok());
    return client;
  }
  FakeService service_;
};

TEST_F(ClientTest, ChatStreamsDeltasAndFillsTheAnswer) {
  auto client = WithSession();
  std::vector<std::string> deltas;
  std::vector<uint32_t> ids;
  ChatRequest request{.session_id = "s",
                      .messages = {{Role::kUser, "hello there"}},
                      .expected_turn = 0};
  request.params.logprobs = 1;
  request.params.sampling.seed = 7;
  const auto answer = client->Chat(
      request,
      {.on_delta = [&](std::string_view d) { deltas.emplace_back(d); },
       .on_token = [&](const SampledToken& t) { ids.push_back(t.token_id); }});
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(deltas, ElementsAre("You ", "said: ", "hello ", "there"));
  EXPECT_THAT(ids, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(answer->text, "You said: hello there");
  EXPECT_EQ(answer->tokens.size(), 4U);
  EXPECT_EQ(answer->finish_reason, FinishReason::kEnd);
  EXPECT_EQ(answer->prompt_tokens, 100U);
  EXPECT_EQ(answer->reused.disk, 64U);
  EXPECT_EQ(answer->reused.total(), 64U);
  EXPECT_EQ(answer->durability, Durability::kLocal);
  EXPECT_EQ(answer->seed, 7U);
  EXPECT_EQ(answer->turn, 1U);
  EXPECT_EQ(answer->timings.prefill, absl::Microseconds(1500));
  EXPECT_GT(answer->client_ttft, absl::ZeroDuration());
}

TEST_F(ClientTest, CallsNameTheTraceThatTheyAreAskedFor) {
  auto without = Connect();
  ASSERT_TRUE(without->GetModelInfo().ok());
  EXPECT_EQ(service_.last_trace(), "");
  std::string trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  ClientOptions options;
  options.traceparent = [&trace] { return trace; };
  auto client = Connect(options);
  ASSERT_TRUE(client->GetModelInfo().ok());
  EXPECT_EQ(service_.last_trace(), trace);
  // Each call is asked for anew; what no header may hold is not sent.
  for (const std::string& none : {std::string(), std::string("a\nb"),
                                  std::string("\0", 1), std::string("\xff")}) {
    trace = none;
    ASSERT_TRUE(client->GetModelInfo().ok());
    EXPECT_EQ(service_.last_trace(), "");
  }
}

TEST_F(ClientTest, CallsOfASessionNameItForLoadBalancers) {
  auto client = Connect();
  ASSERT_TRUE(client->CreateSession({.id = "a-session"}).ok());
  EXPECT_EQ(service_.last_session(), "a-session");
  ASSERT_TRUE(client->GetModelInfo().ok());
  EXPECT_EQ(service_.last_session(), "");
  ASSERT_TRUE(
      client
          ->Chat({.session_id = "a-session", .messages = {{Role::kUser, "hi"}}})
          .ok());
  EXPECT_EQ(service_.last_session(), "a-session");
  // The server says what is wrong with it, not gRPC.
  EXPECT_TRUE(absl::IsNotFound(client->GetSession("two\nlines").status()));
}

TEST_F(ClientTest, OnlyFieldsThatWereSetAreSent) {
  auto client = Connect();
  ChatRequest request{.messages = {{Role::kSystem, "a"}, {Role::kUser, "b"}}};
  request.params.sampling.temperature = 0.0F;
  request.params.stop = {"x"};
  request.params.no_cache = true;
  ASSERT_TRUE(client->Chat(request).ok());
  const v1::ChatRequest sent = service_.last_chat();
  EXPECT_FALSE(sent.has_expected_turn());
  EXPECT_TRUE(sent.params().sampling().has_temperature());
  EXPECT_FALSE(sent.params().sampling().has_seed());
  EXPECT_FALSE(sent.params().has_max_tokens());
  EXPECT_TRUE(sent.params().no_cache());
  EXPECT_EQ(sent.params().stop(0), "x");
  EXPECT_EQ(sent.messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(sent.messages(1).role(), v1::ROLE_USER);
}

TEST_F(ClientTest, CancelEndsARunningAnswer) {
  auto client = WithSession();
  service_.set_hang(true);
  CancelHandle cancel;
  std::string text;
  const auto answer =
      client->Chat({.session_id = "s", .messages = {{Role::kUser, "hi"}}},
                   {.on_delta =
                        [&](std::string_view d) {
                          text += d;
                          cancel.Cancel();
                        },
                    .cancel = &cancel});
  EXPECT_TRUE(absl::IsCancelled(answer.status())) << answer.status();
  EXPECT_EQ(text, "You ");
  service_.set_hang(false);
  // The handle stays cancelled until it is reset.
  EXPECT_TRUE(absl::IsCancelled(
      client->Chat({.messages = {{Role::kUser, "hi"}}}, {.cancel = &cancel})
          .status()));
  cancel.Reset();
  EXPECT_TRUE(
      client->Chat({.messages = {{Role::kUser, "hi"}}}, {.cancel = &cancel})
          .ok());
}

TEST_F(ClientTest, CancelFromAnotherThread) {
  auto client = WithSession();
  service_.set_hang(true);
  CancelHandle cancel;
  std::thread other([&] {
    absl::SleepFor(absl::Milliseconds(50));
    cancel.Cancel();
  });
  const auto answer =
      client->Chat({.session_id = "s", .messages = {{Role::kUser, "hi"}}},
                   {.cancel = &cancel});
  other.join();
  EXPECT_TRUE(absl::IsCancelled(answer.status()));
}

TEST_F(ClientTest, DeadlineEndsARunningAnswer) {
  auto client = Connect();
  service_.set_hang(true);
  const auto answer = client->Chat({.messages = {{Role::kUser, "hi"}}},
                                   {.deadline = absl::Milliseconds(100)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(answer.status())) << answer.status();
}

TEST_F(ClientTest, ErrorsKeepCodeMessageAndRetryHint) {
  auto client = Connect({.max_attempts = 1});
  const auto missing = client->GetSession("nobody");
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("nobody"));
  EXPECT_FALSE(RetryAfter(missing.status()).has_value());

  service_.FailNext(1, {grpc::StatusCode::RESOURCE_EXHAUSTED, "full"}, 250);
  const auto full = client->Chat({.messages = {{Role::kUser, "hi"}}});
  EXPECT_TRUE(absl::IsResourceExhausted(full.status()));
  EXPECT_EQ(RetryAfter(full.status()), absl::Milliseconds(250));
}

TEST_F(ClientTest, ReadsAreTriedAgainWhereTheServerWasAway) {
  auto client = Connect();
  service_.FailNext(2, {grpc::StatusCode::UNAVAILABLE, "away"});
  EXPECT_TRUE(client->Tokenize("abc").ok());
  EXPECT_EQ(service_.calls(), 3);
  service_.FailNext(3, {grpc::StatusCode::UNAVAILABLE, "away"});
  EXPECT_TRUE(absl::IsUnavailable(client->GetModelInfo().status()));
}

TEST_F(ClientTest, ATurnIsTriedAgainOnlyWhereItCannotBeAppliedTwice) {
  auto client = WithSession();
  const int before = service_.calls();
  service_.FailNext(1, {grpc::StatusCode::UNAVAILABLE, "away"});
  EXPECT_TRUE(absl::IsUnavailable(
      client->Chat({.session_id = "s", .messages = {{Role::kUser, "a"}}})
          .status()));
  EXPECT_EQ(service_.calls(), before + 1);

  service_.FailNext(1, {grpc::StatusCode::UNAVAILABLE, "away"});
  EXPECT_TRUE(client
                  ->Chat({.session_id = "s",
                          .messages = {{Role::kUser, "a"}},
                          .expected_turn = 0})
                  .ok());
  EXPECT_EQ(service_.calls(), before + 3);

  // Refused with a hint: it was never begun.
  service_.FailNext(1, {grpc::StatusCode::RESOURCE_EXHAUSTED, "full"}, 1);
  EXPECT_TRUE(
      client->Chat({.session_id = "s", .messages = {{Role::kUser, "a"}}}).ok());
}

TEST_F(ClientTest, ATurnIsNotTriedAgainAfterItsFirstText) {
  auto client = WithSession();
  service_.FailChatMidway({grpc::StatusCode::UNAVAILABLE, "gone"});
  const int before = service_.calls();
  std::string text;
  EXPECT_TRUE(absl::IsUnavailable(
      client
          ->Chat({.session_id = "s",
                  .messages = {{Role::kUser, "a"}},
                  .expected_turn = 0},
                 {.on_delta = [&](std::string_view d) { text += d; }})
          .status()));
  EXPECT_EQ(text, "You ");
  EXPECT_EQ(service_.calls(), before + 1);
}

TEST_F(ClientTest, SessionsRoundTrip) {
  auto client = Connect();
  const auto made = client->CreateSession({.id = "one",
                                           .system_prompt = "Be brief.",
                                           .ttl = absl::Hours(1),
                                           .codec = "kv-fp16",
                                           .title = "t"});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->codec, "kv-fp16");
  EXPECT_EQ(made->title, "t");
  ASSERT_TRUE(made->expire_time.has_value());
  EXPECT_EQ(*made->expire_time - made->create_time, absl::Hours(1));
  EXPECT_TRUE(
      absl::IsAlreadyExists(client->CreateSession({.id = "one"}).status()));
  EXPECT_FALSE(client->CreateSession({.id = "ever", .ttl = absl::Hours(0)})
                   ->expire_time.has_value());

  ASSERT_TRUE(
      client->Chat({.session_id = "one", .messages = {{Role::kUser, "q"}}})
          .ok());
  const auto got = client->GetSession("one", /*with_messages=*/true);
  ASSERT_EQ(got->messages.size(), 3U);
  EXPECT_EQ(got->messages[0].role, Role::kSystem);
  EXPECT_EQ(got->messages[2].content, "You said: q");
  EXPECT_EQ(got->turn, 1U);
  EXPECT_TRUE(client->GetSession("one")->messages.empty());

  const auto fork = client->ForkSession("one", "two", 1);
  EXPECT_EQ(fork->num_messages, 1U);
  EXPECT_EQ(client->ForkSession("one", "last", 0, 2)->num_messages, 2U);
  ASSERT_TRUE(client->DeleteSession("last").ok());
  const auto update = client->UpdateSession(
      "two", {.title = "new", .ttl = absl::Milliseconds(2500)});
  ASSERT_TRUE(update.ok()) << update.status();
  EXPECT_EQ(update->title, "new");
  EXPECT_EQ(*update->expire_time - update->update_time, absl::Seconds(2));
  EXPECT_EQ(client->UpdateSession("two", {})->title, "new");
  const auto migrated = client->MigrateSession("two", "kv-fp16", 4);
  ASSERT_TRUE(migrated.ok()) << migrated.status();
  EXPECT_EQ(migrated->session.codec, "kv-fp16");
  EXPECT_TRUE(migrated->retokenized);
  EXPECT_EQ(migrated->tokens_before, 70U);
  EXPECT_EQ(migrated->tokens_after, 60U);
  EXPECT_EQ(migrated->messages_dropped, 4U);
  EXPECT_EQ(*client->ExportSession("two"), "all of two");
  EXPECT_EQ(*client->ExportSession("two", /*text_only=*/true), "text of two");
  const auto imported = client->ImportSession("{}", "three", "kv-fp16");
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->title, "{}");
  EXPECT_EQ(imported->codec, "kv-fp16");
  EXPECT_TRUE(imported->retokenized);
  EXPECT_EQ(imported->durability, Durability::kLocal);
  ASSERT_TRUE(client->DeleteSession("three").ok());
  EXPECT_TRUE(client->PinSession("two")->pinned);
  EXPECT_FALSE(client->UnpinSession("two")->pinned);
  EXPECT_EQ(client->FlushSession("two")->pages_written, 3U);

  const auto page = client->ListSessions(2);
  ASSERT_EQ(page->sessions.size(), 2U);
  const auto rest = client->ListSessions(2, page->next_page_token);
  EXPECT_EQ(rest->sessions.size(), 1U);
  EXPECT_TRUE(rest->next_page_token.empty());

  EXPECT_TRUE(client->DeleteSession("two").ok());
  EXPECT_TRUE(absl::IsNotFound(client->DeleteSession("two")));
}

TEST_F(ClientTest, AnswersRedoneAndKeptInPartAreAskedFor) {
  auto client = Connect();
  ASSERT_TRUE(client->CreateSession({.id = "s"}).ok());
  ASSERT_TRUE(
      client->Chat({.session_id = "s", .messages = {{Role::kUser, "q"}}}).ok());
  EXPECT_FALSE(service_.last_chat().regenerate());
  EXPECT_FALSE(service_.last_chat().keep_partial());
  ASSERT_TRUE(
      client
          ->Chat({.session_id = "s", .regenerate = true, .keep_partial = true})
          .ok());
  EXPECT_EQ(service_.last_chat().messages_size(), 0);
  EXPECT_TRUE(service_.last_chat().regenerate());
  EXPECT_TRUE(service_.last_chat().keep_partial());
}

TEST_F(ClientTest, TokensScoresAndModel) {
  auto client = Connect();
  EXPECT_THAT(client->Tokenize("ab")->ids, ElementsAre('a', 'b'));
  EXPECT_THAT(client->TokenizeMessages({{Role::kUser, "xy"}}, true)->bytes,
              ElementsAre("x", "y"));
  EXPECT_EQ(client->Detokenize({'h', 'i'})->text, "hi");
  const auto score =
      client->Score({.prompt = {.token_ids = {1, 2, 3}}, .first = 1});
  ASSERT_TRUE(score.ok());
  EXPECT_EQ(score->tokens.size(), 2U);
  EXPECT_DOUBLE_EQ(score->perplexity, std::exp(2.0));
  EXPECT_EQ(service_.last_score().token_ids().ids_size(), 3);
  const auto info = client->GetModelInfo();
  EXPECT_EQ(info->codec, "xquant-gqa:bits=4");
  EXPECT_EQ(info->num_layers, 30U);
  EXPECT_EQ(client->Generate({.prompt = {.text = "go"}})->text, "go!");
}

TEST_F(ClientTest, WaitReadyReportsLoadingUntilServing) {
  service_.SetServing(false);
  auto client = Connect();
  EXPECT_EQ(*client->CheckReady(), Readiness::kLoading);
  int calls = 0;
  const absl::Status status = client->WaitReady(
      absl::Seconds(20), absl::ZeroDuration(), [&](const Progress& progress) {
        EXPECT_EQ(progress.readiness, Readiness::kLoading);
        EXPECT_EQ(progress.percent, 42);
        EXPECT_EQ(progress.what, "making a profile");
        if (++calls == 2) service_.SetServing(true);
        return true;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(calls, 2);
}

TEST_F(ClientTest, WaitReadyGivesUp) {
  service_.SetServing(false);
  auto client = Connect();
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      client->WaitReady(absl::Milliseconds(250), absl::ZeroDuration())));
  EXPECT_TRUE(absl::IsCancelled(
      client->WaitReady(absl::Seconds(9), absl::ZeroDuration(),
                        [](const Progress&) { return false; })));
}

TEST(ClientConnectTest, NobodyThereIsUnavailableAtOnce) {
  auto client = Client::Connect({.address = "127.0.0.1:1"});
  ASSERT_TRUE(client.ok());
  const absl::Status status =
      (*client)->WaitReady(absl::Seconds(30), absl::ZeroDuration());
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1:1"));
}

TEST(ClientConnectTest, BadOptionsAreNamed) {
  EXPECT_TRUE(absl::IsNotFound(
      Client::Connect({.ca_file = "/nonexistent.pem"}).status()));
  const std::string path = ::testing::TempDir() + "/not_a_ca.pem";
  std::ofstream(path) << "nothing\n";
  EXPECT_TRUE(
      absl::IsInvalidArgument(Client::Connect({.ca_file = path}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Client::Connect({.token = "two\nlines"}).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(Client::Connect({.address = ""}).status()));
}

TEST(ClientTokenTest, TheTokenIsSent) {
  FakeService service({.token = "secret", .serving = true});
  auto with =
      Client::Connect({.address = service.address(), .token = "secret"});
  EXPECT_TRUE((*with)->GetModelInfo().ok());
  auto without = Client::Connect({.address = service.address()});
  EXPECT_TRUE(absl::IsUnauthenticated((*without)->GetModelInfo().status()));
}

}  // namespace
}  // namespace xcache::client
