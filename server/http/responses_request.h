// What clients of OpenAI's Responses and Conversations APIs ask for, as the
// core's values: the counterpart of openai_request.h.
#ifndef XCACHE_SERVER_HTTP_RESPONSES_REQUEST_H_
#define XCACHE_SERVER_HTTP_RESPONSES_REQUEST_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/chat_template.h"
#include "engine/model/tool_format.h"
#include "nlohmann/json.hpp"
#include "server/http/completion_params.h"

namespace xcache {

struct ResponseRequest : CompletionParams {
  std::vector<ChatMessage> input;
  std::optional<std::string> instructions;
  std::vector<ToolDef> tools;  // that the answer may call
  std::string previous;        // a response's id; empty: none
  std::string conversation;    // the same; at most one of the two
  bool store = true;
  // What the answer repeats of the request: "temperature", "metadata", ...
  nlohmann::json echo;
};

// Errors, here and below: INVALID_ARGUMENT, with FieldOf (json_body.h).
absl::StatusOr<ResponseRequest> ToResponseRequest(const nlohmann::json& body,
                                                  int vocab_size);

struct ConversationRequest {
  std::vector<ChatMessage> items;
  // An object of texts; null: the request has none.
  nlohmann::json metadata;
};
absl::StatusOr<ConversationRequest> ToConversationRequest(
    const nlohmann::json& body);

// A list's page, by what follows the '?' of a path.
struct PageRequest {
  int limit = 20;  // 1 to 100
  bool descending = true;
  std::string after;  // an item's id; empty: from the start
};
// "%2F" as "/", what is no such escape stays.
std::string Unescape(std::string_view text);
absl::StatusOr<PageRequest> ToPageRequest(std::string_view query);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_RESPONSES_REQUEST_H_
