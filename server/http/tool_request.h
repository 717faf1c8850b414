// Tools in requests of chats, as OpenAI's clients write them: what they define,
// choose, and send back of calls. What tools may be is
// server/frontend/tools.h's.
#ifndef XCACHE_SERVER_HTTP_TOOL_REQUEST_H_
#define XCACHE_SERVER_HTTP_TOOL_REQUEST_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/grammar/grammar_spec.h"
#include "engine/model/tool_format.h"
#include "nlohmann/json.hpp"

namespace xcache {

struct ToolRequest {
  std::vector<ToolDef> tools;  // those that the answer may call
  GrammarSpec grammar;         // what its calls are held to
};

// `tools`, as KeepOrders (json_order.h) leaves them, `tool_choice` and
// `parallel_tool_calls`. Errors, here and below: INVALID_ARGUMENT, with FieldOf
// (json_body.h).
absl::Status ReadTools(const nlohmann::json& body, ToolRequest* out);

// The same of responses, whose tools and choice say all at one level. `echo`
// gets the three as an answer repeats them, where there are tools.
absl::Status ReadResponseTools(const nlohmann::json& body, ToolRequest* out,
                               nlohmann::json* echo);

// Of what does not offer tools: NotOffered, where some are asked for.
absl::Status RefuseTools(const nlohmann::json& body);

// A call: its `name` and its `arguments`.
absl::StatusOr<ToolCall> ReadCall(const std::string& field,
                                  const nlohmann::json& function);
// The calls that an assistant's message made.
absl::StatusOr<std::vector<ToolCall>> ReadCalls(const std::string& field,
                                                const nlohmann::json& message);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_TOOL_REQUEST_H_
