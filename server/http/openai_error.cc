#include "server/http/openai_error.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/utf8.h"
#include "server/core/reason.h"
#include "server/frontend/frontend_call.h"
#include "server/http/json_body.h"

namespace xcache {
namespace {

using nlohmann::json;

constexpr int64_t kMsPerSecond = 1000;

// Messages quote what they refuse, which may be long.
constexpr size_t kMaxMessageBytes = 2048;

std::string_view TypeOf(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 409:
      return "conflict_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return http_status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string CodeName(const absl::Status& status) {
  if (std::string code = CodeOf(status); !code.empty()) return code;
  const ReasonDef& reason = ReasonOf(status);
  switch (reason.id) {
    case Reason::kContextTooLong:
      return "context_length_exceeded";
    case Reason::kUnauthenticated:
      return "invalid_api_key";
    default:
      return absl::AsciiStrToLower(
          absl::string_view(reason.name.data(), reason.name.size()));
  }
}

json ErrorObject(std::string_view message, std::string_view type, json param,
                 json code) {
  std::string text = ToUtf8(message.substr(0, kMaxMessageBytes));
  if (message.size() > kMaxMessageBytes) text += "...";
  return {{"error",
           {{"message", std::move(text)},
            {"type", std::string(type)},
            {"param", std::move(param)},
            {"code", std::move(code)}}}};
}

}  // namespace

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
      return ReasonOf(status).id == Reason::kRequestTooLarge ? 413 : 400;
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

json ErrorBody(const absl::Status& status) {
  const std::string field = FieldOf(status);
  return ErrorObject({status.message().data(), status.message().size()},
                     TypeOf(HttpStatusOf(status)),
                     field.empty() ? json() : json(field), CodeName(status));
}

HttpResponse ErrorResponse(const absl::Status& status, int64_t retry_after_ms,
                           const std::string& request_id) {
  HttpResponse out;
  out.status = HttpStatusOf(status);
  out.body = JsonBytes(ErrorBody(status));
  if (!request_id.empty()) {
    out.headers.emplace_back(kRequestIdHeader, request_id);
  }
  if (out.status == 401) {
    out.headers.emplace_back("WWW-Authenticate", "Bearer");
  }
  // OpenAI's clients try 409 and 500 again by themselves, where it helps
  // nobody: two turns at once, and a record that is damaged.
  if (out.status == 409 || absl::IsDataLoss(status)) {
    out.headers.emplace_back("x-should-retry", "false");
  }
  if (retry_after_ms > 0) {
    out.headers.emplace_back("retry-after-ms", absl::StrCat(retry_after_ms));
    out.headers.emplace_back(
        "Retry-After",
        absl::StrCat((retry_after_ms + kMsPerSecond - 1) / kMsPerSecond));
  }
  return out;
}

HttpResponse PlainError(int http_status, std::string_view message) {
  HttpResponse out;
  out.status = http_status;
  out.body =
      JsonBytes(ErrorObject(message, TypeOf(http_status), json(), json()));
  if (http_status == 429) {
    out.headers.emplace_back("retry-after-ms", absl::StrCat(kMsPerSecond));
    out.headers.emplace_back("Retry-After", "1");
  }
  return out;
}

}  // namespace xcache
