#include "server/http/openai_api.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/utf8.h"
#include "server/core/reason.h"
#include "server/frontend/frontend_call.h"
#include "server/http/completion_call.h"
#include "server/http/embedding_call.h"
#include "server/http/json_body.h"
#include "server/http/openai_error.h"
#include "server/http/page.h"
#include "server/http/response_call.h"
#include "server/http/responses_request.h"
#include "server/http/session_call.h"
#include "server/http/stored_call.h"

namespace xcache {
namespace {

using nlohmann::json;

enum class Route {
  kUnknown,
  kPage,
  kHealth,
  kModels,
  kModel,
  kChatCompletions,
  kCompletions,
  kEmbeddings,
  kResponses,
  kResponse,
  kInputItems,
  kConversations,
  kConversation,
  kItems,
  kItem,
  kSessions,
  kSession,
  kFork,
};

// What a path leads to, and the ids that it names.
struct Target {
  Route route = Route::kUnknown;
  std::string id, item;
};

Target TargetOf(std::string_view path) {
  struct Pattern {
    std::string_view begin;  // before the id; or all, where there is none
    bool has_id;
    std::string_view end;  // after it
    bool has_item;         // after that
    Route route;
  };
  // Longer ones first.
  static constexpr Pattern kPatterns[] = {
      {"/", false, "", false, Route::kPage},
      {"/health", false, "", false, Route::kHealth},
      {"/v1/models", false, "", false, Route::kModels},
      {"/v1/models/", true, "", false, Route::kModel},
      {"/v1/chat/completions", false, "", false, Route::kChatCompletions},
      {"/v1/completions", false, "", false, Route::kCompletions},
      {"/v1/embeddings", false, "", false, Route::kEmbeddings},
      {"/v1/responses", false, "", false, Route::kResponses},
      {"/v1/responses/", true, "/input_items", false, Route::kInputItems},
      {"/v1/responses/", true, "", false, Route::kResponse},
      {"/v1/conversations", false, "", false, Route::kConversations},
      {"/v1/conversations/", true, "/items", false, Route::kItems},
      {"/v1/conversations/", true, "/items/", true, Route::kItem},
      {"/v1/conversations/", true, "", false, Route::kConversation},
      {"/v1/xcache/sessions", false, "", false, Route::kSessions},
      {"/v1/xcache/sessions/", true, "/fork", false, Route::kFork},
      {"/v1/xcache/sessions/", true, "", false, Route::kSession}};
  for (const Pattern& pattern : kPatterns) {
    if (!pattern.has_id) {
      if (path == pattern.begin) return {pattern.route, "", ""};
      continue;
    }
    if (!path.starts_with(pattern.begin)) continue;
    const std::string_view rest = path.substr(pattern.begin.size());
    // A model's name may have a slash.
    const size_t end = pattern.route == Route::kModel
                           ? rest.size()
                           : std::min(rest.find('/'), rest.size());
    const std::string_view after = rest.substr(end);
    if (end == 0 || !after.starts_with(pattern.end)) continue;
    const std::string_view item = after.substr(pattern.end.size());
    if (pattern.has_item == item.empty()) continue;
    return {.route = pattern.route,
            .id = Unescape(rest.substr(0, end)),
            .item = Unescape(item)};
  }
  return {};
}

// What it takes beside HEAD, which is as GET.
std::string_view MethodsOf(Route route) {
  switch (route) {
    case Route::kChatCompletions:
    case Route::kCompletions:
    case Route::kEmbeddings:
    case Route::kResponses:
    case Route::kConversations:
    case Route::kFork:
      return "POST";
    case Route::kResponse:
      return "GET, HEAD, DELETE";
    case Route::kConversation:
    case Route::kSession:
      return "GET, HEAD, POST, DELETE";
    default:
      return "GET, HEAD";
  }
}

Method MethodOf(Route route, std::string_view verb) {
  switch (route) {
    case Route::kModel:
      return Method::kRetrieveModel;
    case Route::kChatCompletions:
      return Method::kChatCompletions;
    case Route::kCompletions:
      return Method::kCompletions;
    case Route::kEmbeddings:
      return Method::kEmbeddings;
    case Route::kResponses:
      return Method::kCreateResponse;
    case Route::kResponse:
      return verb == "DELETE" ? Method::kDeleteResponse
                              : Method::kRetrieveResponse;
    case Route::kInputItems:
      return Method::kListInputItems;
    case Route::kConversations:
      return Method::kCreateConversation;
    case Route::kConversation:
      return verb == "DELETE" ? Method::kDeleteConversation
             : verb == "POST" ? Method::kUpdateConversation
                              : Method::kRetrieveConversation;
    case Route::kItems:
      return Method::kListConversationItems;
    case Route::kItem:
      return Method::kRetrieveConversationItem;
    case Route::kSessions:
      return Method::kListSessions;
    case Route::kSession:
      return verb == "DELETE" ? Method::kDeleteSession
             : verb == "POST" ? Method::kUpdateSession
                              : Method::kGetSession;
    case Route::kFork:
      return Method::kForkSession;
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

class OpenAiApi final : public HttpHandler {
 public:
  explicit OpenAiApi(const OpenAiOptions& options)
      : options_(options),
        frontend_(*options.frontend),
        created_(UnixSeconds()) {}

  Verdict Judge(HttpHead* head) override {
    const Route route = TargetOf(head->path).route;
    Verdict verdict;
    if (route != Route::kHealth && route != Route::kPage) {
      const std::optional<std::string_view> value = head->authorization;
      auto tenant =
          frontend_.auth.Authenticate(value.has_value() ? &*value : nullptr);
      if (!tenant.ok()) {
        if (route != Route::kUnknown) {
          frontend_.metrics.CountRequest(MethodOf(route, head->method),
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
    Target target = TargetOf(exchange->head.path);
    const Method method = MethodOf(target.route, exchange->head.method);
    switch (target.route) {
      case Route::kPage:
        return exchange->Respond(page_);
      case Route::kHealth:
        return exchange->Respond(Health());
      case Route::kModels:
        return Models(method, options_.model, *exchange);
      case Route::kModel:
        return Models(method, target.id, *exchange);
      case Route::kChatCompletions:
      case Route::kCompletions:
        return std::make_shared<CompletionCall>(options_, method,
                                                std::move(exchange))
            ->Start();
      case Route::kEmbeddings:
        return std::make_shared<EmbeddingCall>(options_, std::move(exchange))
            ->Start();
      case Route::kResponses:
        return std::make_shared<ResponseCall>(options_, std::move(exchange))
            ->Start();
      case Route::kSessions:
      case Route::kSession:
      case Route::kFork:
        return std::make_shared<SessionCall>(
                   options_, method, std::move(target.id), std::move(exchange))
            ->Start();
      default:
        return std::make_shared<StoredCall>(
                   options_, method, std::move(target.id),
                   std::move(target.item), std::move(exchange))
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
    const std::string methods(MethodsOf(route));
    const std::vector<std::string> allowed = absl::StrSplit(methods, ", ");
    if (std::find(allowed.begin(), allowed.end(), head.method) ==
        allowed.end()) {
      HttpResponse response =
          PlainError(405, absl::StrCat("expected ", methods));
      response.headers.emplace_back("Allow", methods);
      return response;
    }
    // What a page of another site may send without asking is not taken.
    if (head.method == "POST" && !IsJson(head.content_type.value_or(""))) {
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

  void Models(Method method, const std::string& asked,
              Exchange& exchange) const {
    FrontendCall call(frontend_, FactsOf(method, exchange.head));
    absl::Status status = call.Admit(exchange.head.tenant, 0);
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
    if (method == Method::kListModels) {
      object = {{"object", "list"}, {"data", json::array({object})}};
    }
    response.body = JsonBytes(object);
    exchange.Respond(response);
  }

  const OpenAiOptions options_;
  Frontend& frontend_;
  const int64_t created_;
  const HttpResponse page_ = PageResponse();
  RefusalLog refusals_;
};

}  // namespace

std::unique_ptr<HttpHandler> MakeOpenAiApi(const OpenAiOptions& options) {
  return std::make_unique<OpenAiApi>(options);
}

}  // namespace xcache
