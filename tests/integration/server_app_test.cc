// The whole server over a tiny model: every RPC, the ways a call can end, what
// survives a restart, and what the metrics page says of it all.
#include <atomic>
#include <cmath>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "server/metrics/metrics.h"
#include "tests/integration/app_fixture.h"
#include "tests/unit/server/grpc/test_certificates.h"

namespace xcache::testing {
namespace {

using ::testing::HasSubstr;

// About `n` tokens of plain text.
std::string LongText(int n) {
  std::string text;
  for (int i = 0; static_cast<int>(text.size()) < n; ++i) {
    text += "w" + std::to_string(i) + " ";
  }
  return text;
}

class ServerAppTest : public AppFixture {};

TEST_F(ServerAppTest, AConversationKeepsItsHistory) {
  Start();
  v1::Session session;
  ASSERT_TRUE(CreateSession("talk", &session).ok());
  EXPECT_EQ(session.turn(), 0u);
  const Answer first = Chat(Turn("talk", LongText(300)));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.final.finish_reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(first.final.generated_tokens(), 16u);
  EXPECT_EQ(first.tokens.size(), 16u);
  EXPECT_EQ(first.final.turn(), 1u);
  EXPECT_EQ(first.final.durability(), v1::DURABILITY_LOCAL);
  EXPECT_EQ(first.final.reused().device() + first.final.reused().host() +
                first.final.reused().disk(),
            0u);
  const Answer second = Chat(Turn("talk", "and more"));
  ASSERT_TRUE(second.status.ok());
  EXPECT_EQ(second.final.turn(), 2u);
  EXPECT_GT(second.final.prompt_tokens(), first.final.prompt_tokens());
  EXPECT_GT(second.final.reused().device(), 256u);
  ASSERT_TRUE(GetSession("talk", &session).ok());
  EXPECT_EQ(session.turn(), 2u);
  ASSERT_GE(session.messages_size(), 4);
  const int last = session.messages_size() - 1;
  EXPECT_EQ(session.messages(last).role(), v1::ROLE_ASSISTANT);
  EXPECT_EQ(session.messages(last).content(), second.text);
  EXPECT_EQ(session.messages(last - 1).content(), "and more");
}

TEST_F(ServerAppTest, ARestartedServerGoesOnBitForBit) {
  std::vector<Answer> answers[2];
  for (bool restart : {false, true}) {
    config_.store_dir = folder_.path() + (restart ? "/a" : "/b");
    config_.profile_dir = config_.store_dir + "/profiles";
    Start();
    ASSERT_TRUE(CreateSession("s").ok());
    answers[restart].push_back(Chat(Turn("s", LongText(400), 24)));
    if (restart) {
      Stop();
      Start();
    }
    answers[restart].push_back(Chat(Turn("s", "go on", 64)));
    ASSERT_TRUE(answers[restart].back().status.ok())
        << answers[restart].back().status.error_message();
    Stop();
  }
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(answers[0][i].text, answers[1][i].text);
    EXPECT_EQ(answers[0][i].tokens, answers[1][i].tokens);
    EXPECT_EQ(answers[0][i].logprobs, answers[1][i].logprobs);
  }
  EXPECT_GT(answers[1][1].final.reused().disk() +
                answers[1][1].final.prefilled_tokens(),
            0u);
}

TEST_F(ServerAppTest, RestoredOrComputedAgainTheAnswerIsTheSame) {
  config_.restore = "always";
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Chat(Turn("s", LongText(400))).status.ok());
  v1::ForkSessionRequest fork;
  fork.set_id("s");
  fork.set_new_id("t");
  v1::Session session;
  ASSERT_TRUE(sessions_->ForkSession(Context().get(), fork, &session).ok());
  Stop();
  Start();
  const Answer restored = Chat(Turn("s", "go on", 64));
  Stop();
  config_.restore = "never";
  Start();
  const Answer computed = Chat(Turn("t", "go on", 64));
  ASSERT_TRUE(restored.status.ok()) << restored.status.error_message();
  ASSERT_TRUE(computed.status.ok()) << computed.status.error_message();
  EXPECT_GE(restored.final.reused().disk(), 64u);
  EXPECT_EQ(computed.final.reused().disk(), 0u);
  EXPECT_EQ(computed.final.prefilled_tokens(), computed.final.prompt_tokens());
  EXPECT_EQ(restored.tokens, computed.tokens);
  EXPECT_EQ(restored.logprobs, computed.logprobs);
}

TEST_F(ServerAppTest, ARetryIsNeverAppliedTwice) {
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  v1::ChatRequest request = Turn("s", "once");
  request.set_expected_turn(0);
  ASSERT_TRUE(Chat(request).status.ok());
  EXPECT_EQ(Chat(request).status.error_code(), grpc::StatusCode::ABORTED);
  v1::Session session;
  ASSERT_TRUE(GetSession("s", &session).ok());
  EXPECT_EQ(session.turn(), 1u);
}

TEST_F(ServerAppTest, TwoTurnsAtOnceOnOneSession) {
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  const auto context = Context();
  const auto running =
      inference_->Chat(context.get(), Turn("s", "long", kEndlessTokens));
  v1::ChatResponse response;
  ASSERT_TRUE(running->Read(&response));
  EXPECT_EQ(Chat(Turn("s", "too soon")).status.error_code(),
            grpc::StatusCode::ABORTED);
  context->TryCancel();
  running->Finish();
}

TEST_F(ServerAppTest, ACancelledTurnIsRolledBack) {
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Chat(Turn("s", "first")).status.ok());
  const auto context = Context();
  const auto running =
      inference_->Chat(context.get(), Turn("s", "second", kEndlessTokens));
  v1::ChatResponse response;
  ASSERT_TRUE(running->Read(&response));
  context->TryCancel();
  EXPECT_EQ(running->Finish().error_code(), grpc::StatusCode::CANCELLED);
  v1::ChatRequest again = Turn("s", "third");
  again.set_expected_turn(1);
  // The roll-back may take a step: until then the session is busy.
  EXPECT_TRUE(Eventually([&] { return Chat(again).status.ok(); }));
  v1::Session session;
  ASSERT_TRUE(GetSession("s", &session).ok());
  EXPECT_EQ(session.turn(), 2u);
  EXPECT_EQ(session.messages(session.messages_size() - 2).content(), "third");
}

TEST_F(ServerAppTest, ADeadlineEndsATurn) {
  Start();
  // Where the request takes long to arrive, the client's deadline is well
  // before the server's and what the server sees is a cancellation: then once
  // more.
  EXPECT_TRUE(Eventually([&] {
    const Answer answer = Chat(Turn("", "never ending", kEndlessTokens),
                               std::chrono::milliseconds(300));
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    return MetricValue(
               "xcache_requests_total{method=\"Chat\","
               "code=\"DEADLINE_EXCEEDED\"}") >= 1;
  }));
  EXPECT_TRUE(
      Eventually([&] { return MetricValue("xcache_requests_running") == 0; }));
}

TEST_F(ServerAppTest, GenerateIsRepeatableAndScoreAgreesWithItBitForBit) {
  Start();
  v1::GenerateRequest request;
  request.set_text(LongText(200));
  v1::GenerationParams* params = request.mutable_params();
  params->mutable_sampling()->set_temperature(0.9f);
  params->mutable_sampling()->set_seed(1234);
  params->set_max_tokens(40);
  params->set_ignore_eos(true);
  params->set_logprobs(1);
  const Answer once = Generate(request);
  ASSERT_TRUE(once.status.ok()) << once.status.error_message();
  EXPECT_EQ(once.final.seed(), 1234u);
  const Answer again = Generate(request);
  EXPECT_EQ(once.tokens, again.tokens);
  EXPECT_EQ(once.logprobs, again.logprobs);

  v1::TokenizeRequest tokenize;
  tokenize.set_text(request.text());
  v1::TokenizeResponse prompt;
  ASSERT_TRUE(inference_->Tokenize(Context().get(), tokenize, &prompt).ok());
  ASSERT_EQ(static_cast<uint64_t>(prompt.token_ids_size()),
            once.final.prompt_tokens());
  v1::ScoreRequest score;
  score.set_first(static_cast<uint32_t>(prompt.token_ids_size()));
  for (uint32_t id : prompt.token_ids()) score.mutable_token_ids()->add_ids(id);
  for (uint32_t id : once.tokens) score.mutable_token_ids()->add_ids(id);
  v1::ScoreResponse scored;
  ASSERT_TRUE(inference_->Score(Context().get(), score, &scored).ok());
  ASSERT_EQ(static_cast<size_t>(scored.tokens_size()), once.tokens.size());
  double sum = 0;
  for (int i = 0; i < scored.tokens_size(); ++i) {
    EXPECT_EQ(scored.tokens(i).token_id(), once.tokens[static_cast<size_t>(i)]);
    EXPECT_EQ(scored.tokens(i).logprob(),
              once.logprobs[static_cast<size_t>(i)]);
    sum += static_cast<double>(scored.tokens(i).logprob());
  }
  EXPECT_DOUBLE_EQ(scored.sum_logprob(), sum);
  EXPECT_DOUBLE_EQ(scored.perplexity(), std::exp(-sum / scored.tokens_size()));
}

TEST_F(ServerAppTest, ATooLongContextNamesBothNumbers) {
  Start();
  v1::GenerateRequest request;
  for (int i = 0; i < kContextLength + 52; ++i) {
    request.mutable_token_ids()->add_ids(5);
  }
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("65588"));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("65535"));
}

TEST_F(ServerAppTest, SessionsFromCreationToDeletion) {
  Start();
  ASSERT_TRUE(CreateSession("one").ok());
  EXPECT_EQ(CreateSession("one").error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  v1::Session made;
  ASSERT_TRUE(CreateSession("", &made).ok());
  EXPECT_FALSE(made.id().empty());
  ASSERT_TRUE(Chat(Turn("one", LongText(150))).status.ok());
  ASSERT_TRUE(Chat(Turn("one", "next")).status.ok());

  v1::ForkSessionRequest fork;
  fork.set_id("one");
  fork.set_new_id("two");
  v1::Session session;
  ASSERT_TRUE(sessions_->ForkSession(Context().get(), fork, &session).ok());
  EXPECT_EQ(session.id(), "two");
  ASSERT_TRUE(GetSession("one", &session).ok());
  v1::Session forked;
  ASSERT_TRUE(GetSession("two", &forked).ok());
  EXPECT_EQ(forked.messages_size(), session.messages_size());

  v1::PinSessionRequest pin;
  pin.set_id("two");
  ASSERT_TRUE(sessions_->PinSession(Context().get(), pin, &session).ok());
  EXPECT_TRUE(session.pinned());
  v1::UnpinSessionRequest unpin;
  unpin.set_id("two");
  ASSERT_TRUE(sessions_->UnpinSession(Context().get(), unpin, &session).ok());
  EXPECT_FALSE(session.pinned());
  v1::FlushSessionRequest flush;
  flush.set_id("one");
  v1::FlushSessionResponse flushed;
  EXPECT_TRUE(sessions_->FlushSession(Context().get(), flush, &flushed).ok());

  std::set<std::string> ids;
  v1::ListSessionsRequest list;
  list.set_page_size(2);
  do {
    v1::ListSessionsResponse page;
    ASSERT_TRUE(sessions_->ListSessions(Context().get(), list, &page).ok());
    EXPECT_LE(page.sessions_size(), 2);
    for (const v1::Session& s : page.sessions()) {
      EXPECT_TRUE(ids.insert(s.id()).second);
    }
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  EXPECT_EQ(ids, (std::set<std::string>{"one", "two", made.id()}));

  v1::DeleteSessionRequest remove;
  remove.set_id("one");
  v1::DeleteSessionResponse removed;
  EXPECT_TRUE(sessions_->DeleteSession(Context().get(), remove, &removed).ok());
  EXPECT_EQ(GetSession("one", &session).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Chat(Turn("one", "gone")).status.error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Chat(Turn("two", "still there")).status.ok());
}

TEST_F(ServerAppTest, AWholeHistoryFindsTheSessionsPages) {
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  const Answer first = Chat(Turn("s", LongText(300)));
  ASSERT_TRUE(first.status.ok());
  v1::ChatRequest history = Turn("", LongText(300));
  v1::Message* answer = history.add_messages();
  answer->set_role(v1::ROLE_ASSISTANT);
  answer->set_content(first.text);
  v1::Message* more = history.add_messages();
  more->set_role(v1::ROLE_USER);
  more->set_content("more");
  const Answer found = Chat(history);
  ASSERT_TRUE(found.status.ok())
      << found.status.error_code() << " " << found.status.error_message();
  EXPECT_EQ(found.final.turn(), 0u);
  const v1::ReusedTokens& reused = found.final.reused();
  EXPECT_GE(reused.device() + reused.host() + reused.disk(), 256u);
  history.mutable_params()->set_no_cache(true);
  const Answer alone = Chat(history);
  EXPECT_EQ(alone.final.prefilled_tokens(), alone.final.prompt_tokens());
  EXPECT_EQ(alone.tokens, found.tokens);
  EXPECT_EQ(alone.logprobs, found.logprobs);
}

TEST_F(ServerAppTest, ModelInfoAndHealth) {
  Start();
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(
      inference_
          ->GetModelInfo(Context().get(), v1::GetModelInfoRequest(), &info)
          .ok());
  EXPECT_EQ(info.architecture(), "llama");
  EXPECT_EQ(info.context_length(), uint32_t{kContextLength});
  EXPECT_EQ(info.chat_template(), "chatml");
  EXPECT_THAT(info.codec(), HasSubstr("xquant-gqa:"));
  EXPECT_GT(info.kv_fp16_bytes_per_token(), info.page_bytes_per_token());
  grpc::health::v1::HealthCheckResponse health;
  ASSERT_TRUE(health_
                  ->Check(Context().get(),
                          grpc::health::v1::HealthCheckRequest(), &health)
                  .ok());
  EXPECT_EQ(health.status(), grpc::health::v1::HealthCheckResponse::SERVING);
}

TEST_F(ServerAppTest, TlsAndTokensSeparateTenants) {
  const TestCertificates certs = MakeTestCertificates();
  config_.tls_cert = WriteTestFile("app_cert.pem", certs.server_cert);
  config_.tls_key = WriteTestFile("app_key.pem", certs.server_key);
  config_.token_file =
      WriteTestFile("app_tokens", "token-a alice\ntoken-b bob\n");
  Start();
  Connect(grpc::SslCredentials({certs.ca_cert, "", ""}));
  EXPECT_EQ(CreateSession("s").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  token_ = "token-a";
  ASSERT_TRUE(CreateSession("s").ok());
  const std::string text = LongText(300);
  ASSERT_TRUE(Chat(Turn("s", text)).status.ok());
  token_ = "token-b";
  v1::Session session;
  EXPECT_EQ(GetSession("s", &session).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Chat(Turn("s", "x")).status.error_code(),
            grpc::StatusCode::NOT_FOUND);
  // Nor are the pages of an equal prefix shared.
  const Answer same = Chat(Turn("", text));
  ASSERT_TRUE(same.status.ok());
  EXPECT_EQ(same.final.prefilled_tokens(), same.final.prompt_tokens());
}

TEST_F(ServerAppTest, TheMetricsPageHasASampleOfEveryMetric) {
  // Of tenants there are samples where they have limits.
  config_.token_file =
      WriteTestFile("app_limits", "token-a alice\ntenant alice requests=100\n");
  token_ = "token-a";
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Chat(Turn("s", LongText(300))).status.ok());
  const std::string page = Scrape();
  for (const MetricDef& def : MetricTable()) {
    const std::string name = "\n" + std::string(def.name);
    const bool found = page.find(name + " ") != std::string::npos ||
                       page.find(name + "{") != std::string::npos ||
                       page.find(name + "_count") != std::string::npos;
    EXPECT_TRUE(found) << def.name;
  }
  EXPECT_EQ(MetricValue("xcache_requests_total{method=\"Chat\",code=\"OK\"}"),
            1);
  EXPECT_EQ(MetricValue("xcache_generated_tokens_total"), 16);
  EXPECT_EQ(MetricValue("xcache_ttft_seconds_count"), 1);
  EXPECT_EQ(MetricValue("xcache_inter_token_seconds_count"), 15);
  EXPECT_EQ(MetricValue("xcache_commits_total{result=\"ok\"}"), 1);
  EXPECT_EQ(MetricValue("xcache_sessions"), 1);
  EXPECT_EQ(MetricValue("xcache_ready"), 1);
  EXPECT_GE(MetricValue("xcache_seals_total"), 4);
  EXPECT_GE(MetricValue("xcache_pages{tier=\"device\"}"), 4);
}

TEST_F(ServerAppTest, ManyChatsAtOnceAnswerAsAlone) {
  Start();
  std::vector<std::string> alone(8);
  for (int i = 0; i < 8; ++i) {
    v1::ChatRequest request = Turn("", "chat " + std::to_string(i), 40);
    request.mutable_params()->set_no_cache(true);
    alone[static_cast<size_t>(i)] = Chat(request).text;
  }
  std::atomic<int> equal{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const Answer answer = Chat(Turn("", "chat " + std::to_string(i), 40));
      if (answer.status.ok() && answer.text == alone[static_cast<size_t>(i)]) {
        ++equal;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 8);
}

TEST_F(ServerAppTest, WithoutADiskNothingIsDurableAndAllElseWorks) {
  config_.store_dir.clear();
  config_.profile_dir.clear();
  Start();
  ASSERT_TRUE(CreateSession("s").ok());
  const Answer answer = Chat(Turn("s", "hello"));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.final.durability(), v1::DURABILITY_MEMORY);
  EXPECT_EQ(Chat(Turn("s", "again")).final.turn(), 2u);
}

TEST_F(ServerAppTest, StoppingLetsARunningTurnFinish) {
  Start();
  const auto context = Context();
  const auto running = inference_->Chat(context.get(), Turn("", "run", 300));
  v1::ChatResponse response;
  ASSERT_TRUE(running->Read(&response));
  std::thread stop([&] { EXPECT_EQ(app_->Stop(std::chrono::seconds(60)), 0); });
  bool has_final = false;
  while (running->Read(&response)) has_final = response.has_final();
  EXPECT_TRUE(running->Finish().ok());
  EXPECT_TRUE(has_final);
  stop.join();
}

}  // namespace
}  // namespace xcache::testing
