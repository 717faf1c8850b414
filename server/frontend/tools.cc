#include "server/frontend/tools.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "server/frontend/text_input.h"

namespace xcache {
namespace {

constexpr char kAnyObject[] = "{\"type\":\"object\"}";

bool IsNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9') || c == '_' || c == '-';
}

}  // namespace

std::string ToolNameText() {
  return absl::StrCat("1 to ", kMaxToolNameBytes,
                      " letters, digits, '_' and '-'");
}

absl::Status CheckToolName(std::string_view field, std::string_view name) {
  if (!name.empty() && name.size() <= kMaxToolNameBytes &&
      std::all_of(name.begin(), name.end(), IsNameByte)) {
    return absl::OkStatus();
  }
  constexpr size_t kShown = 2 * kMaxToolNameBytes;
  return FieldError(field, ToolNameText(),
                    name.size() > kShown
                        ? absl::StrCat(name.size(), " bytes")
                        : absl::StrCat("'", std::string(name), "'"));
}

absl::Status CheckNumTools(std::string_view field, size_t num_tools) {
  if (num_tools <= kMaxTags) return absl::OkStatus();
  return FieldError(field, absl::StrCat("at most ", kMaxTags), num_tools);
}

absl::StatusOr<std::string> ArgumentsSchema(std::string_view field,
                                            std::string parameters,
                                            bool strict) {
  // Nothing said, or nothing asked.
  if (parameters.empty() || SpacedJson(parameters) == "{}") return kAnyObject;
  GrammarSpec spec{.kind = GrammarSpec::Kind::kJsonSchema,
                   .text = std::move(parameters),
                   .choices = {},
                   .tagged = {}};
  const absl::Status held = CheckGrammar(spec);
  if (held.ok()) return std::move(spec.text);
  if (!strict) return kAnyObject;
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), ": ", held.message()));
}

absl::Status CheckChoice(std::string_view field, const ToolChoice& choice,
                         const std::vector<ToolDef>& tools) {
  if (tools.empty() && choice.required) {
    return FieldError(field, "auto or none, without tools",
                      choice.name.empty() ? "required" : choice.name);
  }
  const auto is_it = [&](const ToolDef& tool) {
    return tool.name == choice.name;
  };
  if (choice.name.empty() || std::any_of(tools.begin(), tools.end(), is_it)) {
    return absl::OkStatus();
  }
  return FieldError(field, "one of the tools", choice.name);
}

absl::StatusOr<GrammarSpec> CallGrammar(std::string_view field,
                                        const ToolChoice& choice,
                                        const std::vector<ToolDef>& tools) {
  GrammarSpec grammar;
  grammar.kind = GrammarSpec::Kind::kTagged;
  if (!choice.required) grammar.tagged.trigger = std::string(kCallTrigger);
  grammar.tagged.separator = std::string(kCallSeparator);
  grammar.tagged.once = !choice.parallel || !choice.name.empty();
  for (const ToolDef& tool : tools) {
    if (!choice.name.empty() && tool.name != choice.name) continue;
    grammar.tagged.tags.push_back({.begin = CallBegin(tool.name),
                                   .schema = tool.schema,
                                   .end = std::string(kCallEnd)});
  }
  const absl::Status held = CheckGrammar(grammar);
  if (held.ok()) return grammar;
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), ": ", held.message()));
}

GrammarSpec WithFormat(GrammarSpec calls, GrammarSpec format) {
  if (format.kind == GrammarSpec::Kind::kNone || calls.tagged.trigger.empty()) {
    return calls;
  }
  calls.tagged.trigger.clear();
  calls.tagged.otherwise = format.kind;
  calls.text = std::move(format.text);
  calls.choices = std::move(format.choices);
  return calls;
}

absl::Status FlushResults(std::string_view field,
                          std::vector<std::string>* results,
                          std::vector<ChatMessage>* messages) {
  if (results->empty()) return absl::OkStatus();
  std::string text = ResultsText(*results);
  results->clear();
  XC_RETURN_IF_ERROR(CheckText(field, text, kMaxTextBytes));
  messages->push_back({.role = Role::kUser, .content = std::move(text)});
  return absl::OkStatus();
}

std::string_view DefaultSystemOf(const ServerCore& core) {
  const ChatTemplate* const family = core.chat_template();
  return family == nullptr ? std::string_view() : family->default_system();
}

std::string SystemPromptOf(const SessionInfo& session) {
  if (session.messages.empty() ||
      session.messages.front().role != Role::kSystem) {
    return "";
  }
  return session.messages.front().content;
}

std::string SystemPromptWith(const ServerCore& core, std::string_view prompt,
                             const std::vector<ToolDef>& tools) {
  if (tools.empty()) return std::string(prompt);
  return WithTools(prompt.empty() ? DefaultSystemOf(core) : prompt, tools);
}

void AddTools(const std::vector<ToolDef>& tools,
              std::string_view default_system, bool system_allowed,
              std::vector<ChatMessage>* messages) {
  if (tools.empty() || messages->empty()) return;
  ChatMessage& first = messages->front();
  if (!system_allowed) {
    first.content = absl::StrCat(WithTools("", tools), "\n\n", first.content);
  } else if (first.role == Role::kSystem) {
    first.content = WithTools(first.content, tools);
  } else {
    messages->insert(
        messages->begin(),
        {.role = Role::kSystem, .content = WithTools(default_system, tools)});
  }
}

absl::Status SayTools(ServerCore& core, const std::vector<ToolDef>& tools,
                      ChatTurn* turn) {
  const ChatTemplate* const family = core.chat_template();
  // Without a template the core refuses any chat.
  if (tools.empty() || family == nullptr) return absl::OkStatus();
  SessionInfo session;
  if (!turn->session_id.empty()) {
    XC_ASSIGN_OR_RETURN(session, core.GetSession(turn->tenant, turn->session_id,
                                                 /*with_messages=*/true));
    if (!turn->expected_turn.has_value()) turn->expected_turn = session.turn;
  }
  if (session.messages.empty()) {
    AddTools(tools, family->default_system(), family->takes_system(),
             &turn->messages);
    return absl::OkStatus();
  }
  if (!family->takes_system()) {
    if (session.messages.front().content.starts_with(WithTools("", tools))) {
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError(absl::StrCat(
        "tools: session '", session.id,
        "' began with others or none, and the model's chat template takes no "
        "system message that could say so"));
  }
  const std::string prompt = SystemPromptOf(session);
  std::string wanted = SystemPromptWith(core, WithoutTools(prompt), tools);
  if (wanted != prompt) turn->system_prompt = std::move(wanted);
  return absl::OkStatus();
}

}  // namespace xcache
