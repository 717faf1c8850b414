#include "server/http/openai_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/core/reason.h"
#include "server/frontend/trace_context.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/json_order.h"
#include "server/http/openai_error.h"

namespace xcache {
namespace {

using nlohmann::json;

HttpResponse StreamHead(const std::string& request_id) {
  HttpResponse out;
  out.content_type = "text/event-stream; charset=utf-8";
  out.headers = {{"Cache-Control", "no-cache"},
                 // nginx would collect events before it passes them on.
                 {"X-Accel-Buffering", "no"},
                 {kRequestIdHeader, request_id}};
  return out;
}

}  // namespace

CallFacts FactsOf(Method method, const HttpHead& head) {
  CallFacts facts;
  facts.method = method;
  facts.peer = head.peer;
  facts.request_id = head.request_id;
  if (head.traceparent.has_value()) {
    facts.trace = ParseTraceparent(*head.traceparent);
  }
  facts.session = head.session.value_or("");
  return facts;
}

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

OpenAiCall::OpenAiCall(const OpenAiOptions& options, Method method,
                       std::shared_ptr<Exchange> exchange)
    : options_(options),
      method_(method),
      exchange_(std::move(exchange)),
      call_(*options.frontend, FactsOf(method, exchange_->head)) {}

WorkClass OpenAiCall::work() const {
  return TextClassOf(exchange_->body.size());
}

void OpenAiCall::Start() {
  // The tree between the two copies is counted on its own.
  const auto bytes = static_cast<int64_t>(exchange_->body.size());
  if (absl::Status status =
          call_.Admit(exchange_->head.tenant, kRequestCopies * bytes);
      !status.ok()) {
    return Refuse(status, FrontendCall::RetryAfter(status));
  }
  RunWork([this] { return Submit(); });
}

void OpenAiCall::RunWork(std::function<absl::Status()> body) {
  const auto self = shared_from_this();
  call_.Run(
      work(),
      [exchange = exchange_] { return exchange->cancellation()->cancelled(); },
      [self, body = std::move(body)] {
        if (absl::Status status = body(); !status.ok()) {
          self->Refuse(status, FrontendCall::RetryAfter(status));
        }
      },
      [self](const absl::Status& status, int64_t retry_after_ms) {
        self->Refuse(status, retry_after_ms);
      });
}

absl::StatusOr<OpenAiCall::Tree> OpenAiCall::TakeBody() {
  const JsonCost cost = CostOf(exchange_->body);
  Tree tree;
  XC_ASSIGN_OR_RETURN(tree.held, call_.Hold(cost.bytes));
  absl::StatusOr<json> parsed = ParseJsonObject(exchange_->body, cost);
  if (parsed.ok()) KeepOrders(exchange_->body, &*parsed);
  exchange_->DropBody();
  XC_ASSIGN_OR_RETURN(tree.json, std::move(parsed));
  if (const json* key = Find(tree.json, "prompt_cache_key");
      key != nullptr && key->is_string()) {
    call_.NameSession(key->get<std::string>());
  }
  return tree;
}

absl::Status OpenAiCall::CheckModel(const std::string& model) const {
  if (model.empty() || model == options_.model) return absl::OkStatus();
  return WithField(WithReason(absl::NotFoundError(absl::StrCat(
                                  "the model '", model.substr(0, 200),
                                  "' does not exist; this server has '",
                                  options_.model, "'")),
                              Reason::kModelNotFound),
                   "model");
}

void OpenAiCall::Refuse(const absl::Status& status, int64_t retry_after_ms) {
  const FrontendCall::Ending ending = call_.Close(status, retry_after_ms, "");
  exchange_->Respond(
      ErrorResponse(ending.status, ending.retry_after_ms, call_.request_id()));
}

void OpenAiCall::RespondJson(const json& body) { RespondBody(JsonBytes(body)); }

void OpenAiCall::RespondBody(std::string body) {
  HttpResponse response;
  response.headers.emplace_back(kRequestIdHeader, call_.request_id());
  response.body = std::move(body);
  exchange_->Respond(response);
}

std::vector<std::shared_ptr<Cancellation>> OpenAiCall::Cancellations(
    size_t count) const {
  std::vector<std::shared_ptr<Cancellation>> out(count);
  for (auto& one : out) one = std::make_shared<Cancellation>();
  exchange_->cancellation()->SetWaker([out] {
    for (const auto& one : out) one->Cancel();
  });
  return out;
}

void OpenAiCall::KeepPinging() {
  exchange_->SetTicker([weak = weak_from_this()](SteadyTime now) {
    if (const auto self = weak.lock()) self->Tick(now);
  });
}

void OpenAiCall::BeginStream() {
  if (streaming_) return;
  streaming_ = true;
  exchange_->Begin(StreamHead(call_.request_id()));
}

void OpenAiCall::WriteStream(std::string_view data) {
  BeginStream();
  exchange_->Write(data);
  last_sent_ = std::chrono::steady_clock::now();
}

void OpenAiCall::Tick(SteadyTime now) {
  MutexLock lock(mu_);
  if (ended_) return;
  if (last_sent_ == SteadyTime()) last_sent_ = now;
  if (now - last_sent_ < options_.ping || !exchange_->idle()) return;
  WriteStream(": ping\n\n");
  last_sent_ = now;
}

}  // namespace xcache
