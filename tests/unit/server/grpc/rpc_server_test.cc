// The wire, end to end over a real port, with a fake core behind it.
#include "server/grpc/rpc_server.h"

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "server/frontend/tls.h"
#include "server/grpc/status.h"
#include "tests/unit/server/grpc/eventually.h"
#include "tests/unit/server/grpc/fake_core.h"
#include "tests/unit/server/grpc/test_certificates.h"
#include "xcache/v1/inference.grpc.pb.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using std::chrono::system_clock;
using testing::Eventually;
using testing::FakeCore;
using ::testing::HasSubstr;
using testing::kPatience;

v1::ChatRequest Chat(const std::string& command) {
  v1::ChatRequest request;
  v1::Message* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content(command);
  return request;
}

class RpcServerTest : public ::testing::Test {
 protected:
  void Start(const std::string& token_file = "",
             const TlsFiles& tls = TlsFiles(),
             const StreamLimits& limits = StreamLimits()) {
    auth_ = Authenticator::Create(token_file).value();
    RpcServerOptions options;
    options.listen.address = "127.0.0.1:0";
    if (!tls.cert.empty()) options.tls = TlsIdentity::Load(tls).value();
    server_.reset();  // before what it borrows
    frontend_ =
        std::make_unique<Frontend>(Frontend::Options{.metrics = &metrics_,
                                                     .auth = auth_.get(),
                                                     .tenants = nullptr,
                                                     .stream_limits = limits});
    options.frontend = frontend_.get();
    auto server = RpcServer::Listen(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    Connect(grpc::InsecureChannelCredentials());
  }
  void StartServing() {
    Start();
    Serve();
  }
  void Serve() {
    frontend_->gate.Open(&core_);
    server_->SetServing(true);
  }
  void StopServing() {
    frontend_->gate.Close();
    server_->SetServing(false);
  }

  void Connect(const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    grpc::ChannelArguments arguments;
    // Else channels to one address share a connection, also an older one's.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ =
        grpc::CreateCustomChannel(server_->address(), credentials, arguments);
    inference_ = v1::Inference::NewStub(channel_);
    sessions_ = v1::Sessions::NewStub(channel_);
    health_ = Health::NewStub(channel_);
  }

  struct Answer {
    grpc::Status status;
    std::string text;
    std::vector<v1::SampledToken> logprobs;
    int messages = 0;
    bool has_final = false;
    v1::Final final;
    std::multimap<std::string, std::string> trailers;
  };

  Answer RunChat(const v1::ChatRequest& request,
                 const std::string& token = "") {
    grpc::ClientContext context;
    context.set_deadline(system_clock::now() + kPatience);
    if (!token.empty()) {
      context.AddMetadata("authorization", "Bearer " + token);
    }
    return Finish(context, inference_->Chat(&context, request).get());
  }

  static Answer Finish(grpc::ClientContext& context,
                       grpc::ClientReader<v1::ChatResponse>* reader) {
    Answer answer;
    v1::ChatResponse response;
    while (reader->Read(&response)) {
      EXPECT_FALSE(answer.has_final) << "a message after the final one";
      ++answer.messages;
      answer.text += response.delta();
      for (const auto& token : response.logprobs()) {
        answer.logprobs.push_back(token);
      }
      if (response.has_final()) {
        answer.has_final = true;
        answer.final = response.final();
      }
    }
    answer.status = reader->Finish();
    for (const auto& [key, value] : context.GetServerTrailingMetadata()) {
      answer.trailers.emplace(std::string(key.data(), key.size()),
                              std::string(value.data(), value.size()));
    }
    return answer;
  }

  HealthCheckResponse::ServingStatus Check(const std::string& service,
                                           grpc::StatusCode* code = nullptr) {
    grpc::ClientContext context;
    context.set_deadline(system_clock::now() + kPatience);
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status = health_->Check(&context, request, &response);
    if (code != nullptr) *code = status.error_code();
    return response.status();
  }

  uint64_t Counted(Method method, absl::StatusCode code) {
    return metrics_.requests(method, code);
  }

  Metrics metrics_;
  FakeCore core_;
  std::unique_ptr<Authenticator> auth_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  std::unique_ptr<Health::Stub> health_;
};

TEST_F(RpcServerTest, ChatStreamsTextAndThenTheFinalMessage) {
  StartServing();
  const Answer answer = RunChat(Chat("say hello, world"));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "hello, world");
  ASSERT_TRUE(answer.has_final);
  EXPECT_EQ(answer.final.finish_reason(), v1::FINISH_REASON_END);
  EXPECT_EQ(answer.final.generated_tokens(), 12u);
  EXPECT_EQ(answer.final.reused().disk(), 64u);
  EXPECT_EQ(answer.final.seed(), 42u);
  EXPECT_EQ(answer.final.durability(), v1::DURABILITY_LOCAL);
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kOk), 1u);
}

TEST_F(RpcServerTest, LogprobsArriveOnceInOrderHoweverDeltasAreJoined) {
  StartServing();
  const std::string text(3000, 'q');
  v1::ChatRequest request = Chat("say ab" + text);
  request.mutable_params()->set_logprobs(3);
  const Answer answer = RunChat(request);
  ASSERT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.text, "ab" + text);
  ASSERT_EQ(answer.logprobs.size(), 3002u);
  EXPECT_EQ(answer.logprobs[0].token_id(), static_cast<uint32_t>('a'));
  EXPECT_EQ(answer.logprobs[1].token(), "b");
  EXPECT_EQ(answer.logprobs[1].top_size(), 2);
}

TEST_F(RpcServerTest, GenerateContinuesTextAndIds) {
  StartServing();
  for (bool as_ids : {false, true}) {
    v1::GenerateRequest request;
    const std::string prompt = "say xyz";
    if (as_ids) {
      for (char c : prompt) {
        request.mutable_token_ids()->add_ids(static_cast<uint32_t>(c));
      }
    } else {
      request.set_text(prompt);
    }
    grpc::ClientContext context;
    const auto reader = inference_->Generate(&context, request);
    std::string text;
    v1::GenerateResponse response;
    while (reader->Read(&response)) text += response.delta();
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(text, "xyz");
    EXPECT_TRUE(response.has_final());
  }
}

TEST_F(RpcServerTest, ManyChatsAtOnce) {
  StartServing();
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 32; ++i) {
    threads.emplace_back([&, i] {
      const std::string text = absl::StrCat("chat ", i);
      if (RunChat(Chat("say " + text)).text == text) ++good;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 32);
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kOk), 32u);
}

TEST_F(RpcServerTest, EveryCodeOfTheCoreReachesTheClientAndTheMetrics) {
  StartServing();
  for (int code = 1; code <= 16; ++code) {
    const Answer answer = RunChat(Chat(absl::StrCat("fail ", code)));
    EXPECT_EQ(static_cast<int>(answer.status.error_code()), code);
    EXPECT_EQ(answer.status.error_message(), "as asked");
    EXPECT_FALSE(answer.has_final);
    EXPECT_EQ(Counted(Method::kChat, static_cast<absl::StatusCode>(code)), 1u);
  }
}

TEST_F(RpcServerTest, AFullQueueSaysWhenToTryAgain) {
  StartServing();
  const Answer answer = RunChat(Chat("busy"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ASSERT_EQ(answer.trailers.count(kRetryAfterTrailer), 1u);
  EXPECT_EQ(answer.trailers.find(kRetryAfterTrailer)->second, "1234");
}

TEST_F(RpcServerTest, BadRequestsAreRefusedAndCounted) {
  StartServing();
  const Answer answer = RunChat(v1::ChatRequest());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("messages"));
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kInvalidArgument), 1u);
  v1::ChatRequest unknown = Chat("say x");
  unknown.set_session_id("nobody");
  EXPECT_EQ(RunChat(unknown).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kNotFound), 1u);
}

TEST_F(RpcServerTest, RequestsThatDoNotParseAreRefused) {
  StartServing();
  grpc::GenericStub generic(channel_);
  // A field of 100 bytes that are not there; text that is no UTF-8.
  for (const std::string& bytes :
       {std::string("\x0A\x64"), std::string("\x0A\x02\xFF\xFE")}) {
    grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    context.set_deadline(system_clock::now() + kPatience);
    std::promise<grpc::Status> status;
    generic.UnaryCall(&context, "/xcache.v1.Inference/Tokenize",
                      grpc::StubOptions(), &request, &response,
                      [&](grpc::Status s) { status.set_value(std::move(s)); });
    EXPECT_FALSE(status.get_future().get().ok());
  }
  EXPECT_TRUE(RunChat(Chat("say still here")).status.ok());
}

TEST_F(RpcServerTest, CancellingStopsTheCore) {
  StartServing();
  grpc::ClientContext context;
  const auto reader = inference_->Chat(&context, Chat("hang"));
  ASSERT_TRUE(Eventually([&] { return core_.running() == 1; }));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return core_.running() == 0; }));
  EXPECT_EQ(core_.cancelled(), 1);
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kCancelled), 1u);
}

TEST_F(RpcServerTest, ADeadlineStopsTheCoreAndIsNamed) {
  StartServing();
  // Where the request takes long to arrive, the client's deadline is well
  // before the server's and what the server sees is a cancellation: then once
  // more.
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    context.set_deadline(system_clock::now() + milliseconds(200));
    const auto reader = inference_->Chat(&context, Chat("hang"));
    EXPECT_EQ(reader->Finish().error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_TRUE(Eventually([&] { return core_.running() == 0; }));
    return Counted(Method::kChat, absl::StatusCode::kDeadlineExceeded) == 1;
  }));
}

TEST_F(RpcServerTest, AClientThatReadsLateGetsEverything) {
  StartServing();
  grpc::ClientContext context;
  const auto reader = inference_->Chat(&context, Chat("flood 2000000"));
  ASSERT_TRUE(Eventually([&] { return core_.running() == 0; }));
  std::this_thread::sleep_for(milliseconds(50));
  const Answer answer = Finish(context, reader.get());
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, std::string(2'000'000, 'x'));
  EXPECT_TRUE(answer.has_final);
}

TEST_F(RpcServerTest, AClientThatLetsTooMuchPileUpLosesItsAnswer) {
  StreamLimits limits;
  limits.queued_bytes = 64 << 10;
  Start("", TlsFiles(), limits);
  Serve();
  grpc::ClientContext context;
  const auto reader = inference_->Chat(&context, Chat("flood"));
  ASSERT_TRUE(Eventually([&] { return core_.cancelled() == 1; }));
  const Answer answer = Finish(context, reader.get());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("does not read"));
  EXPECT_FALSE(answer.has_final);
}

TEST_F(RpcServerTest, AClientThatNeverReadsIsCutOff) {
  StreamLimits limits;
  limits.stall = milliseconds(150);
  limits.queued_bytes = size_t{1} << 40;
  Start("", TlsFiles(), limits);
  Serve();
  grpc::ClientContext context;
  const auto reader = inference_->Chat(&context, Chat("flood"));
  // It notices though nobody reads, and frees the core...
  ASSERT_TRUE(Eventually([&] { return core_.cancelled() == 1; }));
  EXPECT_TRUE(Eventually([&] {
    return Counted(Method::kChat, absl::StatusCode::kResourceExhausted) == 1;
  }));
  // ...and later ends the stream itself.
  std::this_thread::sleep_for(milliseconds(600));
  EXPECT_FALSE(Finish(context, reader.get()).status.ok());
}

TEST_F(RpcServerTest, TokenizeAndDetokenize) {
  StartServing();
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("hi");
    request.set_add_bos(true);
    v1::TokenizeResponse response;
    ASSERT_TRUE(inference_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.token_ids_size(), 3);
    EXPECT_EQ(response.token_ids(0), 256u);
    EXPECT_EQ(response.tokens(1), "h");
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    v1::Message* message = request.mutable_messages()->add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content("abc");
    v1::TokenizeResponse response;
    ASSERT_TRUE(inference_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.token_ids_size(), 3);
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    for (uint32_t id : {0x61u, 0xFFu, 256u}) request.add_token_ids(id);
    v1::DetokenizeResponse response;
    ASSERT_TRUE(inference_->Detokenize(&context, request, &response).ok());
    EXPECT_EQ(response.bytes(), "a\xFF");
    EXPECT_EQ(response.text(), "a\xEF\xBF\xBD");
  }
}

TEST_F(RpcServerTest, ScoreSumsUp) {
  StartServing();
  grpc::ClientContext context;
  v1::ScoreRequest request;
  request.set_text("abcd");
  request.set_first(2);
  v1::ScoreResponse response;
  ASSERT_TRUE(inference_->Score(&context, request, &response).ok());
  EXPECT_EQ(response.tokens_size(), 3);
  EXPECT_EQ(response.tokens(0).token(), "b");
  EXPECT_DOUBLE_EQ(response.sum_logprob(), -3.0);
  EXPECT_NEAR(response.perplexity(), 2.718281828, 1e-9);
  EXPECT_EQ(response.prompt_tokens(), 5u);
}

TEST_F(RpcServerTest, GetModelInfo) {
  StartServing();
  grpc::ClientContext context;
  v1::GetModelInfoResponse response;
  ASSERT_TRUE(
      inference_->GetModelInfo(&context, v1::GetModelInfoRequest(), &response)
          .ok());
  EXPECT_EQ(response.name(), "fake");
  EXPECT_EQ(response.codec(), "kv-fp16");
  EXPECT_EQ(response.page_bytes_per_token(), 100.0);
  EXPECT_EQ(response.model_fp().size(), 64u);
  EXPECT_FALSE(response.server_version().empty());
}

TEST_F(RpcServerTest, SessionsComeAndGo) {
  StartServing();
  v1::Session session;
  {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.set_id("s1");
    request.set_title("a title");
    ASSERT_TRUE(sessions_->CreateSession(&context, request, &session).ok());
    EXPECT_EQ(session.title(), "a title");
    EXPECT_EQ(session.create_time().nanos(), 500'000'000);
    EXPECT_TRUE(session.has_expire_time());
  }
  {
    grpc::ClientContext context;
    v1::CreateSessionRequest request;
    request.set_id("s1");
    EXPECT_EQ(
        sessions_->CreateSession(&context, request, &session).error_code(),
        grpc::StatusCode::ALREADY_EXISTS);
  }
  {
    grpc::ClientContext context;
    v1::ForkSessionRequest request;
    request.set_id("s1");
    request.set_new_id("s2");
    request.set_num_messages(3);
    request.set_keep_last_messages(2);
    ASSERT_TRUE(sessions_->ForkSession(&context, request, &session).ok());
    EXPECT_EQ(session.id(), "s2");
    EXPECT_EQ(session.num_messages(), 3u + 2u);
  }
  {
    grpc::ClientContext context;
    v1::UpdateSessionRequest request;
    request.set_id("s2");
    request.set_title("other");
    request.mutable_ttl()->set_nanos(1);  // a part of a second is not never
    ASSERT_TRUE(sessions_->UpdateSession(&context, request, &session).ok());
    EXPECT_EQ(session.title(), "other");
    EXPECT_EQ(session.expire_time().seconds() - session.create_time().seconds(),
              1);
  }
  {
    grpc::ClientContext context;
    v1::MigrateSessionRequest request;
    v1::MigrateSessionResponse response;
    request.set_id("s2");
    request.set_codec("kv-fp16");
    request.set_keep_last_messages(4);
    ASSERT_TRUE(sessions_->MigrateSession(&context, request, &response).ok());
    EXPECT_EQ(response.session().codec(), "kv-fp16");
    EXPECT_TRUE(response.retokenized());
    EXPECT_EQ(response.tokens_before(), 70u);
    EXPECT_EQ(response.tokens_after(), 60u);
    EXPECT_EQ(response.messages_dropped(), 4u);
  }
  {
    grpc::ClientContext context;
    v1::ExportSessionRequest request;
    v1::ExportSessionResponse response;
    request.set_id("s2");
    request.set_text_only(true);
    ASSERT_TRUE(sessions_->ExportSession(&context, request, &response).ok());
    EXPECT_EQ(response.document(), "text of s2");
  }
  {
    grpc::ClientContext context;
    v1::ImportSessionRequest request;
    request.set_document("text");
    request.set_id("s3");
    request.set_codec("kv-fp16");
    ASSERT_TRUE(sessions_->ImportSession(&context, request, &session).ok());
    EXPECT_EQ(session.title(), "text");
    EXPECT_EQ(session.codec(), "kv-fp16");
    EXPECT_TRUE(session.retokenized());
  }
  {
    grpc::ClientContext context;
    v1::PinSessionRequest request;
    request.set_id("s1");
    ASSERT_TRUE(sessions_->PinSession(&context, request, &session).ok());
    EXPECT_TRUE(session.pinned());
  }
  {
    grpc::ClientContext context;
    v1::UnpinSessionRequest request;
    request.set_id("s1");
    ASSERT_TRUE(sessions_->UnpinSession(&context, request, &session).ok());
    EXPECT_FALSE(session.pinned());
  }
  {
    grpc::ClientContext context;
    v1::GetSessionRequest request;
    request.set_id("s1");
    request.set_with_messages(true);
    session.Clear();
    ASSERT_TRUE(sessions_->GetSession(&context, request, &session).ok());
    ASSERT_EQ(session.messages_size(), 1);
    EXPECT_EQ(session.messages(0).role(), v1::ROLE_SYSTEM);
  }
  {
    grpc::ClientContext context;
    v1::ListSessionsRequest request;
    request.set_page_size(1);
    v1::ListSessionsResponse response;
    ASSERT_TRUE(sessions_->ListSessions(&context, request, &response).ok());
    EXPECT_EQ(response.sessions_size(), 1);
    EXPECT_EQ(response.next_page_token(), "more");
  }
  {
    grpc::ClientContext context;
    v1::FlushSessionRequest request;
    request.set_id("s1");
    v1::FlushSessionResponse response;
    ASSERT_TRUE(sessions_->FlushSession(&context, request, &response).ok());
    EXPECT_EQ(response.pages_written(), 3u);
  }
  for (const auto code : {grpc::StatusCode::OK, grpc::StatusCode::NOT_FOUND}) {
    grpc::ClientContext context;
    v1::DeleteSessionRequest request;
    request.set_id("s1");
    v1::DeleteSessionResponse response;
    EXPECT_EQ(
        sessions_->DeleteSession(&context, request, &response).error_code(),
        code);
  }
  EXPECT_EQ(Counted(Method::kDeleteSession, absl::StatusCode::kNotFound), 1u);
  EXPECT_EQ(Counted(Method::kCreateSession, absl::StatusCode::kAlreadyExists),
            1u);
}

TEST_F(RpcServerTest, WhileLoadingNothingIsServedAndCallersSeeHowFarItIs) {
  Start();
  frontend_->gate.SetProgress("making the profile\n", 0.425);
  EXPECT_EQ(Check(""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Check("xcache.v1.Inference"), HealthCheckResponse::NOT_SERVING);
  const Answer answer = RunChat(Chat("say x"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("42 %"));
  EXPECT_EQ(answer.trailers.find(kLoadingPercentTrailer)->second, "42");
  EXPECT_EQ(answer.trailers.find(kLoadingWhatTrailer)->second,
            "making the profile?");
  EXPECT_EQ(answer.trailers.count(kRetryAfterTrailer), 1u);
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kUnavailable), 1u);
  Serve();
  EXPECT_EQ(Check(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(Check("xcache.v1.Inference"), HealthCheckResponse::SERVING);
  EXPECT_EQ(Check("xcache.v1.Sessions"), HealthCheckResponse::SERVING);
  EXPECT_TRUE(RunChat(Chat("say x")).status.ok());
}

TEST_F(RpcServerTest, HealthOfAnUnknownServiceIsNotFound) {
  StartServing();
  grpc::StatusCode code = grpc::StatusCode::OK;
  Check("xcache.v1.Nonsense", &code);
  EXPECT_EQ(code, grpc::StatusCode::NOT_FOUND);
}

TEST_F(RpcServerTest, WatchShowsEveryChange) {
  Start();
  grpc::ClientContext context;
  const auto reader = health_->Watch(&context, HealthCheckRequest());
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  Serve();
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  StopServing();
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  server_->Shutdown(system_clock::now() + kPatience);
  EXPECT_FALSE(reader->Read(&response));
  reader->Finish();
}

TEST_F(RpcServerTest, WatchOfAnUnknownServiceStaysOpen) {
  StartServing();
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service("nonsense");
  const auto reader = health_->Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  context.TryCancel();
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(RpcServerTest, DrainingFinishesWhatRunsAndRefusesTheRest) {
  StartServing();
  grpc::ClientContext context;
  const auto reader = inference_->Chat(&context, Chat("hang"));
  ASSERT_TRUE(Eventually([&] { return core_.running() == 1; }));
  StopServing();
  EXPECT_EQ(Check(""), HealthCheckResponse::NOT_SERVING);
  const Answer refused = RunChat(Chat("say x"));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("shutting down"));
  EXPECT_EQ(refused.trailers.count(kLoadingPercentTrailer), 0u);
  EXPECT_EQ(core_.running(), 1);
  EXPECT_EQ(core_.Drain(steady_clock::now() + milliseconds(50)), 1);
  server_->Shutdown(system_clock::now() + kPatience);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(RpcServerTest, TokensNameTenantsThatDoNotSeeEachOther) {
  Start(testing::WriteTestFile("tokens", "ta alice\ntb bob\n"));
  Serve();
  EXPECT_EQ(RunChat(Chat("say x")).status.error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(RunChat(Chat("say x"), "nope").status.error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Counted(Method::kChat, absl::StatusCode::kUnauthenticated), 2u);
  EXPECT_TRUE(RunChat(Chat("say x"), "ta").status.ok());
  // Probes have no token.
  EXPECT_EQ(Check(""), HealthCheckResponse::SERVING);
  {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer ta");
    v1::CreateSessionRequest request;
    request.set_id("mine");
    v1::Session session;
    ASSERT_TRUE(sessions_->CreateSession(&context, request, &session).ok());
  }
  for (const auto& [token, code] : {std::pair{"ta", grpc::StatusCode::OK},
                                    {"tb", grpc::StatusCode::NOT_FOUND}}) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", absl::StrCat("Bearer ", token));
    v1::GetSessionRequest request;
    request.set_id("mine");
    v1::Session session;
    EXPECT_EQ(sessions_->GetSession(&context, request, &session).error_code(),
              code);
  }
}

class RpcServerTlsTest : public RpcServerTest {
 protected:
  const testing::TestCertificates certs_ = testing::MakeTestCertificates();
  const TlsFiles files_{
      testing::WriteTestFile("rpc_cert.pem", certs_.server_cert),
      testing::WriteTestFile("rpc_key.pem", certs_.server_key), ""};
  const std::string ca_ = testing::WriteTestFile("rpc_ca.pem", certs_.ca_cert);
};

TEST_F(RpcServerTlsTest, ServesOverTlsOnly) {
  Start("", files_);
  Serve();
  EXPECT_FALSE(RunChat(Chat("say x")).status.ok());
  Connect(grpc::SslCredentials({certs_.ca_cert, "", ""}));
  EXPECT_EQ(RunChat(Chat("say over tls")).text, "over tls");
}

TEST_F(RpcServerTlsTest, ClientsMustShowACertificateWhereOneIsAskedFor) {
  TlsFiles files = files_;
  files.client_ca = ca_;
  Start("", files);
  Serve();
  Connect(grpc::SslCredentials({certs_.ca_cert, "", ""}));
  EXPECT_FALSE(RunChat(Chat("say x")).status.ok());
  Connect(grpc::SslCredentials(
      {certs_.ca_cert, certs_.client_key, certs_.client_cert}));
  EXPECT_EQ(RunChat(Chat("say hi")).text, "hi");
}

TEST_F(RpcServerTest, APortInUseIsOneClearError) {
  StartServing();
  RpcServerOptions options;
  options.listen.address = server_->address();
  options.frontend = frontend_.get();
  const auto second = RpcServer::Listen(options);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(server_->address()));
  EXPECT_TRUE(RunChat(Chat("say still here")).status.ok());
}

}  // namespace
}  // namespace xcache
