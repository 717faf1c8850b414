// A small server inside the test: both services, with answers that are simple
// functions of the requests, and knobs for what may go wrong. It has no engine
// and keeps what it needs of each request for the test to look at.
#ifndef XCACHE_TESTS_UNIT_CLIENT_FAKE_SERVICE_H_
#define XCACHE_TESTS_UNIT_CLIENT_FAKE_SERVICE_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "xcache/v1/inference.grpc.pb.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache::client {

class FakeService final : public v1::Inference::Service,
                          public v1::Sessions::Service {
 public:
  struct Options {
    std::string token;  // what callers must show; empty: nothing
    bool serving = true;
  };

  explicit FakeService(Options options) : options_(std::move(options)) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(static_cast<v1::Inference::Service*>(this));
    builder.RegisterService(static_cast<v1::Sessions::Service*>(this));
    server_ = builder.BuildAndStart();
    SetServing(options_.serving);
  }
  FakeService() : FakeService(Options{}) {}
  ~FakeService() override {
    server_->Shutdown(std::chrono::system_clock::now() +
                      std::chrono::seconds(1));
  }

  // Refuses everything as a server does that drains.
  void SetStopping() {
    stopping_ = true;
    SetServing(false);
  }
  // Of the answers from now on.
  void set_durability(v1::Durability durability) { durability_ = durability; }
  void set_finish_reason(v1::FinishReason reason) { finish_reason_ = reason; }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  void SetServing(bool serving) {
    serving_ = serving;
    server_->GetHealthCheckService()->SetServingStatus(serving);
  }

  // The next `n` calls end with this before they do anything.
  void FailNext(int n, grpc::Status status, int retry_after_ms = -1) {
    std::lock_guard<std::mutex> lock(mutex_);
    fail_ = n;
    fail_status_ = std::move(status);
    retry_after_ms_ = retry_after_ms;
  }
  // Chat hands out one word and then nothing until the caller gives up.
  void set_hang(bool hang) { hang_ = hang; }
  // Chat ends with this status after its first delta.
  void FailChatMidway(grpc::Status status) {
    std::lock_guard<std::mutex> lock(mutex_);
    midway_ = std::move(status);
  }

  int calls() const { return calls_; }
  int cancelled() const { return cancelled_; }
  // What the last call named in its metadata x-session-id.
  std::string last_session() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_session_;
  }
  // The same of traceparent.
  std::string last_trace() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_trace_;
  }
  v1::ChatRequest last_chat() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_chat_;
  }
  v1::ScoreRequest last_score() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_score_;
  }

  // Answers "You said: <content>", a delta a word.
  grpc::Status Chat(grpc::ServerContext* context,
                    const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::ChatResponse>* writer) override {
    if (auto status = Begin(context); !status.ok()) return status;
    uint64_t turn = 0;
    grpc::Status midway;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      last_chat_ = *request;
      midway = midway_;
      if (!request->session_id().empty()) {
        const auto it = sessions_.find(request->session_id());
        if (it == sessions_.end()) return Unknown(request->session_id());
        turn = it->second.turn();
        if (request->has_expected_turn() && request->expected_turn() != turn) {
          return {grpc::StatusCode::ABORTED, "the session is at another turn"};
        }
      }
    }
    std::string answer = "You said:";
    for (const v1::Message& message : request->messages()) {
      answer += " " + message.content();
    }
    uint32_t id = 0;
    for (size_t at = 0; at < answer.size();) {
      const size_t space = answer.find(' ', at);
      const size_t end = space == std::string::npos ? answer.size() : space + 1;
      v1::ChatResponse response;
      response.set_delta(answer.substr(at, end - at));
      if (request->params().logprobs() > 0) {
        v1::SampledToken* token = response.add_logprobs();
        token->set_token_id(id++);
        token->set_token(response.delta());
        token->set_logprob(-0.5F);
        for (uint32_t i = 1; i < request->params().logprobs(); ++i) {
          v1::TokenLogprob* top = token->add_top();
          top->set_token_id(1000 + i);
          top->set_token("\xC3");
          top->set_logprob(-2.0F);
        }
      }
      writer->Write(response);
      at = end;
      if (!midway.ok()) return midway;
      while (hang_) {
        if (context->IsCancelled()) {
          ++cancelled_;
          return {grpc::StatusCode::CANCELLED, "cancelled"};
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    }
    v1::ChatResponse last;
    v1::Final* final = last.mutable_final();
    final->set_finish_reason(finish_reason_);
    final->set_prompt_tokens(100);
    final->set_prefilled_tokens(36);
    final->set_generated_tokens(8);
    final->mutable_reused()->set_disk(64);
    final->set_durability(request->session_id().empty()
                              ? v1::DURABILITY_UNSPECIFIED
                              : durability_.load());
    final->set_seed(request->params().sampling().seed());
    final->mutable_timings()->set_prefill_us(1500);
    final->mutable_timings()->set_decode_us(100000);
    final->mutable_timings()->set_ttft_us(2500);
    if (!request->session_id().empty()) {
      std::lock_guard<std::mutex> lock(mutex_);
      v1::Session& session = sessions_[request->session_id()];
      session.set_turn(turn + 1);
      for (const v1::Message& message : request->messages()) {
        *session.add_messages() = message;
      }
      v1::Message* mine = session.add_messages();
      mine->set_role(v1::ROLE_ASSISTANT);
      mine->set_content(answer);
      session.set_num_messages(static_cast<uint64_t>(session.messages_size()));
      final->set_turn(turn + 1);
    }
    writer->Write(last);
    return grpc::Status::OK;
  }

  grpc::Status Generate(
      grpc::ServerContext* context, const v1::GenerateRequest* request,
      grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    if (auto status = Begin(context); !status.ok()) return status;
    v1::GenerateResponse response;
    response.set_delta(request->text() + "!");
    writer->Write(response);
    response.Clear();
    response.mutable_final()->set_finish_reason(v1::FINISH_REASON_MAX_TOKENS);
    response.mutable_final()->set_prompt_tokens(
        static_cast<uint64_t>(request->token_ids().ids_size()));
    writer->Write(response);
    return grpc::Status::OK;
  }

  // A token a byte.
  grpc::Status Tokenize(grpc::ServerContext* context,
                        const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::string text = request->text();
    for (const v1::Message& message : request->messages().messages()) {
      text += message.content();
    }
    for (const char c : text) {
      response->add_token_ids(static_cast<unsigned char>(c));
      response->add_tokens(std::string(1, c));
    }
    return grpc::Status::OK;
  }

  grpc::Status Detokenize(grpc::ServerContext* context,
                          const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    for (const uint32_t id : request->token_ids()) {
      response->mutable_bytes()->push_back(static_cast<char>(id));
    }
    response->set_text(response->bytes());
    return grpc::Status::OK;
  }

  grpc::Status Score(grpc::ServerContext* context,
                     const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    last_score_ = *request;
    response->add_tokens()->set_logprob(-1.0F);
    response->add_tokens()->set_logprob(-3.0F);
    response->set_sum_logprob(-4.0);
    response->set_perplexity(std::exp(2.0));
    return grpc::Status::OK;
  }

  grpc::Status GetModelInfo(grpc::ServerContext* context,
                            const v1::GetModelInfoRequest*,
                            v1::GetModelInfoResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    response->set_name("fake model");
    response->set_architecture("llama");
    response->set_codec("xquant-gqa:bits=4");
    response->set_num_layers(30);
    response->set_context_length(8192);
    response->set_num_parameters(134515008);
    response->set_page_bytes_per_token(6000);
    response->set_kv_fp16_bytes_per_token(23040);
    return grpc::Status::OK;
  }

  grpc::Status CreateSession(grpc::ServerContext* context,
                             const v1::CreateSessionRequest* request,
                             v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    const std::string id = request->id().empty()
                               ? "made-" + std::to_string(++made_)
                               : request->id();
    if (sessions_.contains(id)) {
      return {grpc::StatusCode::ALREADY_EXISTS, "session " + id + " exists"};
    }
    session->set_id(id);
    session->set_title(request->title());
    session->set_codec(request->codec());
    session->set_remat(request->remat().empty() ? "resume" : request->remat());
    if (!request->system_prompt().empty()) {
      v1::Message* message = session->add_messages();
      message->set_role(v1::ROLE_SYSTEM);
      message->set_content(request->system_prompt());
      session->set_num_messages(1);
    }
    session->mutable_create_time()->set_seconds(1700000000);
    session->mutable_update_time()->set_seconds(1700000000);
    if (request->has_ttl() && request->ttl().seconds() > 0) {
      session->mutable_expire_time()->set_seconds(1700000000 +
                                                  request->ttl().seconds());
    }
    sessions_[id] = *session;
    return grpc::Status::OK;
  }

  grpc::Status GetSession(grpc::ServerContext* context,
                          const v1::GetSessionRequest* request,
                          v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = sessions_.find(request->id());
    if (it == sessions_.end()) return Unknown(request->id());
    *session = it->second;
    if (!request->with_messages()) session->clear_messages();
    return grpc::Status::OK;
  }

  // Pages by position in the order of the ids.
  grpc::Status ListSessions(grpc::ServerContext* context,
                            const v1::ListSessionsRequest* request,
                            v1::ListSessionsResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t size = request->page_size() == 0 ? 50 : request->page_size();
    const size_t first =
        request->page_token().empty() ? 0 : std::stoul(request->page_token());
    size_t at = 0;
    for (const auto& [id, session] : sessions_) {
      if (at >= first && at < first + size) {
        v1::Session* out = response->add_sessions();
        *out = session;
        out->clear_messages();
      }
      ++at;
    }
    if (first + size < sessions_.size()) {
      response->set_next_page_token(std::to_string(first + size));
    }
    return grpc::Status::OK;
  }

  grpc::Status DeleteSession(grpc::ServerContext* context,
                             const v1::DeleteSessionRequest* request,
                             v1::DeleteSessionResponse*) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    return sessions_.erase(request->id()) == 1 ? grpc::Status::OK
                                               : Unknown(request->id());
  }

  grpc::Status ForkSession(grpc::ServerContext* context,
                           const v1::ForkSessionRequest* request,
                           v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = sessions_.find(request->id());
    if (it == sessions_.end()) return Unknown(request->id());
    *session = it->second;
    session->set_id(request->new_id().empty()
                        ? "made-" + std::to_string(++made_)
                        : request->new_id());
    if (request->num_messages() > 0) {
      while (session->messages_size() >
             static_cast<int>(request->num_messages())) {
        session->mutable_messages()->RemoveLast();
      }
      session->set_num_messages(
          static_cast<uint64_t>(session->messages_size()));
    }
    if (request->keep_last_messages() > 0) {
      session->set_num_messages(request->keep_last_messages());
    }
    sessions_[session->id()] = *session;
    return grpc::Status::OK;
  }

  grpc::Status MigrateSession(grpc::ServerContext* context,
                              const v1::MigrateSessionRequest* request,
                              v1::MigrateSessionResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    response->set_retokenized(true);
    response->set_tokens_before(70);
    response->set_tokens_after(60);
    response->set_messages_dropped(request->keep_last_messages());
    return Find(request->id(), response->mutable_session(),
                [request](v1::Session& found) {
                  found.set_codec(request->codec());
                  found.set_needs_migration(false);
                });
  }

  grpc::Status ExportSession(grpc::ServerContext* context,
                             const v1::ExportSessionRequest* request,
                             v1::ExportSessionResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    v1::Session session;
    const grpc::Status status =
        Find(request->id(), &session, [](v1::Session&) {});
    response->set_document((request->text_only() ? "text of " : "all of ") +
                           session.id());
    return status;
  }

  grpc::Status ImportSession(grpc::ServerContext* context,
                             const v1::ImportSessionRequest* request,
                             v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(mutex_);
    session->set_id(request->id());
    session->set_title(request->document());
    session->set_codec(request->codec());
    session->set_retokenized(true);
    session->set_durability(v1::DURABILITY_LOCAL);
    sessions_[session->id()] = *session;
    return grpc::Status::OK;
  }

  grpc::Status UpdateSession(grpc::ServerContext* context,
                             const v1::UpdateSessionRequest* request,
                             v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    return Find(request->id(), session, [request](v1::Session& found) {
      if (request->has_title()) found.set_title(request->title());
      if (request->has_ttl()) {
        found.mutable_expire_time()->set_seconds(found.update_time().seconds() +
                                                 request->ttl().seconds());
      }
    });
  }

  grpc::Status PinSession(grpc::ServerContext* context,
                          const v1::PinSessionRequest* request,
                          v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    return Find(request->id(), session,
                [](v1::Session& found) { found.set_pinned(true); });
  }

  grpc::Status UnpinSession(grpc::ServerContext* context,
                            const v1::UnpinSessionRequest* request,
                            v1::Session* session) override {
    if (auto status = Begin(context); !status.ok()) return status;
    return Find(request->id(), session,
                [](v1::Session& found) { found.set_pinned(false); });
  }

  grpc::Status FlushSession(grpc::ServerContext* context,
                            const v1::FlushSessionRequest* request,
                            v1::FlushSessionResponse* response) override {
    if (auto status = Begin(context); !status.ok()) return status;
    v1::Session session;
    const grpc::Status status =
        Find(request->id(), &session, [](v1::Session&) {});
    response->set_pages_written(3);
    response->set_bytes_written(4096);
    return status;
  }

 private:
  static grpc::Status Unknown(const std::string& id) {
    return {grpc::StatusCode::NOT_FOUND, "no session " + id};
  }

  grpc::Status Begin(grpc::ServerContext* context) {
    ++calls_;
    if (stopping_) {
      return {grpc::StatusCode::UNAVAILABLE, "the server is shutting down"};
    }
    if (!serving_) {
      context->AddTrailingMetadata("loading-percent", "42");
      context->AddTrailingMetadata("loading-what", "making a profile");
      return {grpc::StatusCode::UNAVAILABLE, "loading"};
    }
    const auto& metadata = context->client_metadata();
    std::lock_guard<std::mutex> lock(mutex_);
    const auto named = [&metadata](const char* header) {
      const auto found = metadata.find(header);
      return found == metadata.end()
                 ? std::string()
                 : std::string(found->second.data(), found->second.size());
    };
    last_session_ = named("x-session-id");
    last_trace_ = named("traceparent");
    if (!options_.token.empty()) {
      const auto it = metadata.find("authorization");
      if (it == metadata.end() || it->second != "Bearer " + options_.token) {
        return {grpc::StatusCode::UNAUTHENTICATED, "no such token"};
      }
    }
    if (fail_ == 0) return grpc::Status::OK;
    --fail_;
    if (retry_after_ms_ >= 0) {
      context->AddTrailingMetadata("retry-after-ms",
                                   std::to_string(retry_after_ms_));
    }
    return fail_status_;
  }

  template <typename F>
  grpc::Status Find(const std::string& id, v1::Session* out, const F& f) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = sessions_.find(id);
    if (it == sessions_.end()) return Unknown(id);
    f(it->second);
    *out = it->second;
    out->clear_messages();
    return grpc::Status::OK;
  }

  const Options options_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<int> calls_ = 0;
  std::atomic<int> cancelled_ = 0;
  std::atomic<bool> hang_ = false;
  std::atomic<bool> serving_ = true;
  std::atomic<bool> stopping_ = false;
  std::atomic<v1::Durability> durability_ = v1::DURABILITY_LOCAL;
  std::atomic<v1::FinishReason> finish_reason_ = v1::FINISH_REASON_END;
  mutable std::mutex mutex_;
  int fail_ = 0;
  int retry_after_ms_ = -1;
  grpc::Status fail_status_;
  grpc::Status midway_;
  int made_ = 0;
  std::string last_session_;
  std::string last_trace_;
  v1::ChatRequest last_chat_;
  v1::ScoreRequest last_score_;
  std::map<std::string, v1::Session> sessions_;
};

}  // namespace xcache::client

#endif  // XCACHE_TESTS_UNIT_CLIENT_FAKE_SERVICE_H_
