#include "server/grpc/unary_call.h"

#include <cmath>
#include <string>
#include <utility>

#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "server/frontend/frontend_call.h"
#include "server/grpc/convert.h"

namespace xcache {
namespace {

class WorkerCall final : public grpc::ServerUnaryReactor {
 public:
  WorkerCall(const ServiceDeps& deps, Method method,
             grpc::CallbackServerContext* context,
             const google::protobuf::Message& request)
      : call_(deps, method, context, request) {}

  void Start(std::function<absl::Status(Call&)> body) {
    // Once it has ended `this` may be gone.
    call_.Start([this, body = std::move(body)] { End(body(call_), 0); },
                [this](const absl::Status& status, int64_t retry_after_ms) {
                  End(status, retry_after_ms);
                });
  }
  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status, int64_t retry_after_ms) {
    Finish(call_.Close(status, retry_after_ms, ""));
  }

  Call call_;
};

class ScoreCall final : public grpc::ServerUnaryReactor,
                        public RequestSink,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  ScoreCall(const ServiceDeps& deps, grpc::CallbackServerContext* context,
            const v1::ScoreRequest* request, v1::ScoreResponse* response)
      : call_(deps, Method::kScore, context, *request),
        request_(request),
        response_(response) {}

  void Start() {
    self_ = shared_from_this();
    call_.Start(
        [self = self_] {
          if (absl::Status s = self->Submit(); !s.ok()) self->End(s, 0, "");
        },
        [this](const absl::Status& status, int64_t retry_after_ms) {
          End(status, retry_after_ms, "");
        });
  }

  // The core calls these one at a time, and gRPC reads `response_` only after
  // Finish: no lock.
  void OnDelta(std::string_view /*text*/,
               std::span<const SampledToken> tokens) override {
    for (const SampledToken& token : tokens) {
      ToProto(token, call_.core().tokenizer(), response_->add_tokens());
      sum_logprob_ += static_cast<double>(token.logprob);
    }
  }
  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    if (status.ok()) {
      response_->set_sum_logprob(sum_logprob_);
      response_->set_perplexity(
          std::exp(-sum_logprob_ / std::max(1, response_->tokens_size())));
      response_->set_prompt_tokens(final.prompt_tokens);
      ToProto(final.reused, response_->mutable_reused());
    }
    End(status, final.retry_after_ms, DescribeFinal(final));
  }

  void OnCancel() override { cancellation_->Cancel(); }
  void OnDone() override { auto self = std::move(self_); }

 private:
  absl::Status Submit() {
    XC_ASSIGN_OR_RETURN(ScoreRequest score,
                        ToScore(*request_, call_.core().tokenizer()));
    call_.SetBase(cancellation_, &score);
    call_.core().SubmitScore(std::move(score), shared_from_this());
    return absl::OkStatus();
  }

  void End(const absl::Status& status, int64_t retry_after_ms,
           std::string_view details) {
    Finish(call_.Close(status, retry_after_ms, details));
  }

  Call call_;
  const v1::ScoreRequest* const request_;
  v1::ScoreResponse* const response_;
  const std::shared_ptr<Cancellation> cancellation_ =
      std::make_shared<Cancellation>();
  std::shared_ptr<ScoreCall> self_;
  double sum_logprob_ = 0.0;
};

}  // namespace

grpc::ServerUnaryReactor* RunUnary(const ServiceDeps& deps, Method method,
                                   grpc::CallbackServerContext* context,
                                   const google::protobuf::Message& request,
                                   std::function<absl::Status(Call&)> body) {
  auto* call = new WorkerCall(deps, method, context, request);
  call->Start(std::move(body));
  return call;
}

grpc::ServerUnaryReactor* RunScore(const ServiceDeps& deps,
                                   grpc::CallbackServerContext* context,
                                   const v1::ScoreRequest* request,
                                   v1::ScoreResponse* response) {
  auto call = std::make_shared<ScoreCall>(deps, context, request, response);
  call->Start();
  return call.get();
}

}  // namespace xcache
