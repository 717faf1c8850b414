// Statuses as OpenAI's clients know them: the HTTP status, the headers that say
// whether and when to try again, and the error object.
#ifndef XCACHE_SERVER_HTTP_OPENAI_ERROR_H_
#define XCACHE_SERVER_HTTP_OPENAI_ERROR_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "server/http/exchange.h"

namespace xcache {

int HttpStatusOf(const absl::Status& status);

// {"error": {"message", "type", "param", "code"}}. `code` is OpenAI's name of
// the error, or our reason's (server/core/reason.h) in lower case.
nlohmann::json ErrorBody(const absl::Status& status);

// REQUIRES: not OK. `retry_after_ms` 0: it is not said when to try again.
HttpResponse ErrorResponse(const absl::Status& status, int64_t retry_after_ms,
                           const std::string& request_id);

// For what never became a call.
HttpResponse PlainError(int http_status, std::string_view message);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_OPENAI_ERROR_H_
