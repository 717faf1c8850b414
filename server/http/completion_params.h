// What requests for answers have in common, whichever way they are asked: the
// model, how to sample, and messages.
#ifndef XCACHE_SERVER_HTTP_COMPLETION_PARAMS_H_
#define XCACHE_SERVER_HTTP_COMPLETION_PARAMS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/chat_template.h"
#include "nlohmann/json.hpp"
#include "server/core/request.h"

namespace xcache {

// Answers of one request, over all its prompts.
inline constexpr int kMaxAnswers = 64;

struct CompletionParams {
  std::string model;  // empty: not said
  GenerationOptions options;
  int n = 1;  // answers for each prompt
  bool stream = false;
  bool include_usage = false;  // of a stream, at its end
  bool logprobs = false;
};

// Errors, here and below: INVALID_ARGUMENT, with FieldOf (json_body.h).
// `vocab_size`: of the model, for what names tokens.
absl::Status ReadParams(const nlohmann::json& body, int vocab_size,
                        CompletionParams* out);

// A text, or an array of parts that are texts.
absl::StatusOr<std::string> ToContent(const std::string& field,
                                      const nlohmann::json* content,
                                      bool is_item);

// Calls of an assistant's message are a part of its text (tool_format.h).
// `is_item`: of the Responses API, which has names of its own for texts.
absl::StatusOr<ChatMessage> ToMessage(const std::string& field,
                                      const nlohmann::json& message,
                                      bool is_item);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_COMPLETION_PARAMS_H_
