// Tools of ChatRequest, and what ChatResponse says of an answer apart: between
// the wire's messages and server/frontend/tools.h and answer_reader.h.
#ifndef XCACHE_SERVER_GRPC_CHAT_TOOLS_H_
#define XCACHE_SERVER_GRPC_CHAT_TOOLS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/grammar/grammar_spec.h"
#include "engine/model/tool_format.h"
#include "server/frontend/answer_reader.h"
#include "xcache/v1/common.pb.h"
#include "xcache/v1/inference.pb.h"

namespace xcache {

// The tools that the answer may call: none of them with MODE_NONE. `grammar`,
// which is of the request's response_format, becomes what the answer is held
// to. INVALID_ARGUMENT names the field.
absl::StatusOr<std::vector<ToolDef>> ToTools(const v1::ChatRequest& request,
                                             GrammarSpec* grammar);

// The calls of a message that is `field`.
absl::StatusOr<std::vector<ToolCall>> ToCalls(std::string_view field,
                                              const v1::Message& message);

// Adds the parts, which come in order, to a message.
void ToProto(const std::vector<AnswerPart>& parts, v1::ChatResponse* out);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_CHAT_TOOLS_H_
