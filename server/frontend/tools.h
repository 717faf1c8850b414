// Tools of a chat, whichever door it comes by: what they may be, what an answer
// that may call them is held to, and where a conversation says them. How they
// are written is engine/model/tool_format.h's; reading a wire's own shape of
// them is the door's.
#ifndef XCACHE_SERVER_FRONTEND_TOOLS_H_
#define XCACHE_SERVER_FRONTEND_TOOLS_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/grammar/grammar_spec.h"
#include "engine/model/chat_template.h"
#include "engine/model/tool_format.h"
#include "server/core/request.h"
#include "server/core/server_core.h"

namespace xcache {

inline constexpr size_t kMaxCalls = 128;  // of one message
// What a tool's name may be, for who is told so.
std::string ToolNameText();

// Errors, here and below: INVALID_ARGUMENT of FieldError, about `field`.
absl::Status CheckToolName(std::string_view field, std::string_view name);
absl::Status CheckNumTools(std::string_view field, size_t num_tools);

// What the arguments of a tool are held to: its `parameters`, the text of a
// JSON object; empty: it names none. A schema that cannot be held to is an
// error where it is `strict`, and any object where nobody insists.
absl::StatusOr<std::string> ArgumentsSchema(std::string_view field,
                                            std::string parameters,
                                            bool strict);

struct ToolChoice {
  bool none = false;      // the answer is text, as if there were no tools
  bool required = false;  // the answer is calls alone
  std::string name = {};  // with `required`: of the one that is called, once
  bool parallel = true;   // an answer may have several calls
};

// Whether there is what is chosen.
absl::Status CheckChoice(std::string_view field, const ToolChoice& choice,
                         const std::vector<ToolDef>& tools);
// What calls are held to. REQUIRES: there are tools, CheckChoice, not `none`.
absl::StatusOr<GrammarSpec> CallGrammar(std::string_view field,
                                        const ToolChoice& choice,
                                        const std::vector<ToolDef>& tools);
// What an answer is held to that may call tools, or else is of a format: where
// it must call one, calls alone.
GrammarSpec WithFormat(GrammarSpec calls, GrammarSpec format);

// Results of tools that follow each other in a history are one message of the
// user's: moves them there, where there are any.
absl::Status FlushResults(std::string_view field,
                          std::vector<std::string>* results,
                          std::vector<ChatMessage>* messages);

// The template's own; empty: none.
std::string_view DefaultSystemOf(const ServerCore& core);
// What the session begins with, tools included; may be empty. REQUIRES: its
// messages were asked for.
std::string SystemPromptOf(const SessionInfo& session);
// A system prompt with the tools, or what they stand behind where there is
// none; as it is where there are no tools.
std::string SystemPromptWith(const ServerCore& core, std::string_view prompt,
                             const std::vector<ToolDef>& tools);

// Puts what a prompt says of tools before a history. `default_system`: the
// template's, for where there is no system message; `system_allowed` false: the
// first user's message begins with it.
void AddTools(const std::vector<ToolDef>& tools,
              std::string_view default_system, bool system_allowed,
              std::vector<ChatMessage>* messages);
// The same of a turn (its tenant is set), whether it is a whole history or a
// session's: reads that, changes what it begins with where that names other
// tools or none, and has the turn refused where another comes in between.
// Nothing without tools. Errors: those of GetSession; FAILED_PRECONDITION: the
// template takes no system message, and the session began with other tools.
absl::Status SayTools(ServerCore& core, const std::vector<ToolDef>& tools,
                      ChatTurn* turn);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_TOOLS_H_
