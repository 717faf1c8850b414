// What clients want answers to be held to, in each of the ways they ask for it:
// OpenAI's response_format and text.format, vLLM's structured_outputs and
// guided_*. Schemas as KeepOrders (json_order.h) leaves them, or as objects.
#ifndef XCACHE_SERVER_HTTP_FORMAT_REQUEST_H_
#define XCACHE_SERVER_HTTP_FORMAT_REQUEST_H_

#include "absl/status/status.h"
#include "engine/grammar/grammar_spec.h"
#include "nlohmann/json.hpp"

namespace xcache {

// Of chats and completions. Errors, here and below: INVALID_ARGUMENT, with
// FieldOf (json_body.h).
absl::Status ReadFormat(const nlohmann::json& body, GrammarSpec* out);
// Of responses.
absl::Status ReadTextFormat(const nlohmann::json& body, GrammarSpec* out);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_FORMAT_REQUEST_H_
