#include "server/http/openai_api.h"

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/utf8.h"
#include "server/core/reason.h"
#include "server/frontend/frontend_call.h"
#include "server/http/json_body.h"
#include "server/http/openai_error.h"

namespace xcache {
namespace {

using nlohmann::json;

enum class Route {
  kUnknown,
  kHealth,
  kModels,
  kModel,
  kChatCompletions,
  kCompletions,
};

constexpr std::string_view kModelPath = "/v1/models/";

Route RouteOf(std::string_view path) {
  if (path == "/health") return Route::kHealth;
  if (path == "/v1/models") return Route::kModels;
  if (path.starts_with(kModelPath)) return Route::kModel;
  if (path == "/v1/chat/completions") return Route::kChatCompletions;
  if (path == "/v1/completions") return Route::kCompletions;
  return Route::kUnknown;
}

bool IsCompletion(Route route) {
  return route == Route::kChatCompletions || route == Route::kCompletions;
}

Method MethodOf(Route route) {
  switch (route) {
    case Route::kModel:
      return Method::kRetrieveModel;
    case Route::kChatCompletions:
      return Method::kChatCompletions;
    case Route::kCompletions:
      return Method::kCompletions;
    default:
      return Method::kListModels;
  }
}

// "application/json", with or without parameters.
bool IsJson(const std::string& content_type) {
  const std::string type = content_type.substr(0, content_type.find(';'));
  return absl::EqualsIgnoreCase(absl::StripAsciiWhitespace(type),
                                "application/json");
}

// "a%2Fb" as "a/b"; what is no such escape stays.
std::string Unescape(std::string_view text) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 &&
        digit(text[i + 2]) >= 0) {
      out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

class OpenAiApi final : public HttpHandler {
 public:
  explicit OpenAiApi(const OpenAiOptions& options)
      : options_(options),
        frontend_(*options.frontend),
        created_(std::chrono::duration_cast<std::chrono::seconds>(
                     std::chrono::system_clock::now().time_since_epoch())
                     .count()) {}

  Verdict Judge(HttpHead* head) override {
    const Route route = RouteOf(head->path);
    Verdict verdict;
    if (route != Route::kHealth) {
      const std::optional<std::string_view> value = head->authorization;
      auto tenant =
          frontend_.auth.Authenticate(value.has_value() ? &*value : nullptr);
      if (!tenant.ok()) {
        if (route != Route::kUnknown) {
          frontend_.metrics.CountRequest(MethodOf(route),
                                         tenant.status().code(), 0.0);
        }
        refusals_.Note(head->path, tenant.status());
        verdict.refusal = ErrorResponse(
            tenant.status(), 0, PrintableHeader(head->request_id.value_or("")));
        return verdict;
      }
      head->tenant = *std::move(tenant);
      verdict.trusted = true;
    }
    verdict.refusal = Refuse(route, *head);
    return verdict;
  }

  void Handle(std::shared_ptr<Exchange> exchange) override {
    const Route route = RouteOf(exchange->head.path);
    switch (route) {
      case Route::kHealth:
        return exchange->Respond(Health());
      case Route::kModels:
      case Route::kModel:
        return Models(route, *exchange);
      default:
        std::make_shared<CompletionCall>(options_, MethodOf(route),
                                         std::move(exchange))
            ->Start();
    }
  }

  HttpResponse Fault(int status, std::string_view message) override {
    return PlainError(status, message);
  }

 private:
  static std::optional<HttpResponse> Refuse(Route route, const HttpHead& head) {
    if (route == Route::kUnknown) {
      return PlainError(
          404, absl::StrCat("there is no ", ToUtf8(head.path.substr(0, 200))));
    }
    const bool posts = IsCompletion(route);
    const bool fits = posts ? head.method == "POST"
                            : head.method == "GET" || head.method == "HEAD";
    if (!fits) {
      HttpResponse response =
          PlainError(405, absl::StrCat("expected ", posts ? "POST" : "GET"));
      response.headers.emplace_back("Allow", posts ? "POST" : "GET, HEAD");
      return response;
    }
    // What a page of another site may send without asking is not taken.
    if (posts && !IsJson(head.content_type.value_or(""))) {
      return PlainError(415, "expected Content-Type: application/json");
    }
    return std::nullopt;
  }

  HttpResponse Health() const {
    HttpResponse response;
    if (frontend_.gate.is_open()) {
      response.body = "{\"status\":\"ok\"}";
      return response;
    }
    const ReadinessGate::Progress progress = frontend_.gate.progress();
    response.status = 503;
    response.headers.emplace_back("Retry-After", "1");
    json body = {{"status", progress.loading ? "loading" : "stopping"}};
    if (progress.loading) {
      body["what"] = progress.what;
      body["percent"] = progress.percent;
    }
    response.body = JsonBytes(body);
    return response;
  }

  json ModelObject(const ServerCore& core) const {
    return {{"id", options_.model},
            {"object", "model"},
            {"created", created_},
            {"owned_by", "xcache"},
            {"max_model_len", core.max_context()}};
  }

  void Models(Route route, Exchange& exchange) const {
    FrontendCall call(frontend_, FactsOf(MethodOf(route), exchange.head));
    absl::Status status = call.Admit(exchange.head.tenant, 0);
    const std::string asked =
        route == Route::kModel ? Unescape(std::string_view(exchange.head.path)
                                              .substr(kModelPath.size()))
                               : options_.model;
    if (status.ok() && asked != options_.model) {
      status = WithReason(
          absl::NotFoundError(absl::StrCat(
              "the model '", ToUtf8(asked.substr(0, 200)), "' does not exist")),
          Reason::kModelNotFound);
    }
    const FrontendCall::Ending ending = call.Close(status, 0, "");
    if (!ending.status.ok()) {
      return exchange.Respond(ErrorResponse(
          ending.status, ending.retry_after_ms, call.request_id()));
    }
    HttpResponse response;
    response.headers.emplace_back(kRequestIdHeader, call.request_id());
    json object = ModelObject(call.core());
    if (route == Route::kModels) {
      object = {{"object", "list"}, {"data", json::array({object})}};
    }
    response.body = JsonBytes(object);
    exchange.Respond(response);
  }

  const OpenAiOptions options_;
  Frontend& frontend_;
  const int64_t created_;
  RefusalLog refusals_;
};

}  // namespace

std::unique_ptr<HttpHandler> MakeOpenAiApi(const OpenAiOptions& options) {
  return std::make_unique<OpenAiApi>(options);
}

}  // namespace xcache
