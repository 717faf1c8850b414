#include "server/http/tool_request.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "server/core/server_core.h"
#include "server/frontend/text_input.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/json_order.h"

namespace xcache {
namespace {

using nlohmann::json;

constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxCalls = 128;  // of one message
constexpr char kAnyObject[] = "{\"type\":\"object\"}";

// OpenAI's names: letters, digits, "_" and "-".
bool IsName(const json* name) {
  if (name == nullptr || !name->is_string()) return false;
  const std::string& text = name->get_ref<const std::string&>();
  return !text.empty() && text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  (c >= '0' && c <= '9') || c == '_' || c == '-';
         });
}

absl::StatusOr<std::string> ToName(const std::string& field,
                                   const json& object) {
  const json* name = object.is_object() ? Find(object, "name") : nullptr;
  if (IsName(name)) return name->get<std::string>();
  return JsonFieldError(
      field + ".name",
      absl::StrCat("1 to ", kMaxNameBytes, " letters, digits, '_' and '-'"),
      name == nullptr ? json() : *name);
}

// The same JSON as Python's json.dumps spaces it, which templates are written
// with: ", " and ": ", and else no white space.
std::string Spaced(std::string_view text) {
  std::string out;
  bool in_string = false, escaped = false;
  for (const char c : text) {
    if (in_string) {
      out += c;
      if (escaped) {
        escaped = false;
      } else if (c == '\\') {
        escaped = true;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    if (c == ' ' || c == '\n' || c == '\t' || c == '\r') continue;
    in_string = c == '"';
    out += c;
    if (c == ',' || c == ':') out += ' ';
  }
  return out;
}

// A tool of responses as one of chats.
std::string Nested(std::string_view text, const json& tool) {
  std::string function;
  for (const char* name : {"name", "description", "parameters", "strict"}) {
    const json* value = Find(tool, name);
    if (value == nullptr) continue;
    const std::string_view raw = RawMember(text, name);
    absl::StrAppend(&function, function.empty() ? "" : ",", "\"", name,
                    "\":", raw.empty() ? JsonBytes(*value) : std::string(raw));
  }
  const json* type = Find(tool, "type");
  return absl::StrCat("{\"type\":", type == nullptr ? "null" : JsonBytes(*type),
                      ",\"function\":{", function, "}}");
}

absl::StatusOr<ToolDef> ToTool(const std::string& field, const json& value) {
  // As KeepOrders leaves it.
  json parsed;
  if (value.is_string()) {
    parsed = json::parse(value.get_ref<const std::string&>(), nullptr, false);
  }
  const json& tool = value.is_string() ? parsed : value;
  const std::string text = OrderedText(value);
  const json* type = tool.is_object() ? Find(tool, "type") : nullptr;
  if (type == nullptr || *type != "function") {
    if (type != nullptr && type->is_string()) {
      return NotOffered(field + ".type", "a tool that is no function");
    }
    return JsonFieldError(field, "an object of type \"function\"",
                          tool.is_discarded() ? json("no JSON") : tool);
  }
  const json* function = Find(tool, "function");
  if (function == nullptr || !function->is_object()) {
    return JsonFieldError(field + ".function", "an object",
                          function == nullptr ? json() : *function);
  }
  ToolDef out;
  XC_ASSIGN_OR_RETURN(out.name, ToName(field + ".function", *function));
  out.text = Spaced(text);
  out.schema = kAnyObject;
  const json* parameters = Find(*function, "parameters");
  if (parameters == nullptr) return out;
  if (!parameters->is_object()) {
    return JsonFieldError(field + ".function.parameters", "a JSON schema",
                          *parameters);
  }
  const std::string_view raw =
      RawMember(RawMember(text, "function"), "parameters");
  std::string schema = raw.empty() ? JsonBytes(*parameters) : std::string(raw);
  const GrammarSpec spec{.kind = GrammarSpec::Kind::kJsonSchema,
                         .text = schema,
                         .choices = {},
                         .tagged = {}};
  const absl::Status held = CheckGrammar(spec);
  bool strict = false;
  XC_RETURN_IF_ERROR(ReadBool(*function, "strict", &strict));
  if (strict) {
    XC_RETURN_IF_ERROR(WithField(held, field + ".function.parameters"));
  }
  // What cannot be held to is left to the model, where nobody insists.
  if (held.ok() && *parameters != json::object()) out.schema = schema;
  return out;
}

struct Choice {
  bool none = false;
  bool required = false;
  std::string name;  // the one that must be called
};

absl::StatusOr<Choice> ReadChoice(const json& body) {
  Choice out;
  const json* choice = Find(body, "tool_choice");
  if (choice == nullptr || *choice == "auto") return out;
  if (*choice == "none") {
    out.none = true;
    return out;
  }
  out.required = true;
  if (*choice == "required") return out;
  const json* type = choice->is_object() ? Find(*choice, "type") : nullptr;
  const json* function =
      choice->is_object() ? Find(*choice, "function") : nullptr;
  if (type == nullptr || *type != "function" || function == nullptr) {
    return JsonFieldError("tool_choice",
                          "auto, none, required, or an object that names a "
                          "function",
                          *choice);
  }
  XC_ASSIGN_OR_RETURN(out.name, ToName("tool_choice.function", *function));
  return out;
}

}  // namespace

absl::Status ReadTools(const json& body, ToolRequest* out) {
  for (const char* name : {"functions", "function_call"}) {
    const json* value = Find(body, name);
    if (value != nullptr && !value->empty() && *value != "none" &&
        *value != "auto") {
      return NotOffered(name, "what tools came after");
    }
  }
  XC_ASSIGN_OR_RETURN(const Choice choice, ReadChoice(body));
  bool parallel = true;
  XC_RETURN_IF_ERROR(ReadBool(body, "parallel_tool_calls", &parallel));
  const json* tools = Find(body, "tools");
  if (tools != nullptr && !tools->is_array()) {
    return JsonFieldError("tools", "an array", *tools);
  }
  if (tools == nullptr || tools->empty()) {
    if (!choice.required) return absl::OkStatus();
    return JsonFieldError("tool_choice", "auto or none, without tools",
                          *Find(body, "tool_choice"));
  }
  if (tools->size() > kMaxTags) {
    return WithField(
        FieldError("tools", absl::StrCat("at most ", kMaxTags), tools->size()),
        "tools");
  }
  for (const json& tool : *tools) {
    const std::string field = absl::StrCat("tools[", out->tools.size(), "]");
    XC_ASSIGN_OR_RETURN(ToolDef next, ToTool(field, tool));
    out->tools.push_back(std::move(next));
  }
  if (choice.none) {
    out->tools.clear();
    return absl::OkStatus();
  }
  GrammarSpec& grammar = out->grammar;
  grammar.kind = GrammarSpec::Kind::kTagged;
  if (!choice.required) grammar.tagged.trigger = kCallTrigger;
  grammar.tagged.separator = kCallSeparator;
  grammar.tagged.once = !parallel || !choice.name.empty();
  for (const ToolDef& tool : out->tools) {
    if (!choice.name.empty() && tool.name != choice.name) continue;
    grammar.tagged.tags.push_back({.begin = CallBegin(tool.name),
                                   .schema = tool.schema,
                                   .end = std::string(kCallEnd)});
  }
  if (grammar.tagged.tags.empty()) {
    return JsonFieldError("tool_choice.function.name", "one of the tools",
                          json(choice.name));
  }
  return WithField(CheckGrammar(grammar), "tools");
}

absl::Status ReadResponseTools(const json& body, ToolRequest* out, json* echo) {
  const json* tools = Find(body, "tools");
  json nested = json::object();
  json given = json::array();
  size_t bytes = 0;
  if (tools != nullptr && tools->is_array()) {
    nested["tools"] = json::array();
    for (const json& tool : *tools) {
      const std::string text = OrderedText(tool);
      json parsed = json::parse(text, nullptr, false);
      bytes += text.size();
      // What is no object is refused as it is.
      nested["tools"].push_back(parsed.is_object() ? json(Nested(text, parsed))
                                                   : tool);
      given.push_back(std::move(parsed));
    }
  } else if (tools != nullptr) {
    nested["tools"] = *tools;
  }
  // They are kept with the answer.
  if (bytes > kMaxSessionDataBytes) {
    return WithField(
        FieldError("tools",
                   absl::StrCat("of at most ", kMaxSessionDataBytes, " bytes"),
                   bytes),
        "tools");
  }
  const json* choice = Find(body, "tool_choice");
  if (choice != nullptr) {
    nested["tool_choice"] = *choice;
    if (choice->is_object() && choice->contains("name")) {
      nested["tool_choice"]["function"] = {{"name", (*choice)["name"]}};
    }
  }
  for (const char* name :
       {"parallel_tool_calls", "functions", "function_call"}) {
    if (const json* value = Find(body, name)) nested[name] = *value;
  }
  XC_RETURN_IF_ERROR(ReadTools(nested, out));
  if (given.empty()) return absl::OkStatus();
  (*echo)["tools"] = std::move(given);
  (*echo)["tool_choice"] = choice == nullptr ? json("auto") : *choice;
  (*echo)["parallel_tool_calls"] = nested.value("parallel_tool_calls", true);
  return absl::OkStatus();
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

absl::Status RefuseTools(const json& body) {
  for (const char* name : {"tools", "functions"}) {
    const json* value = Find(body, name);
    if (value != nullptr && !(value->is_array() && value->empty())) {
      return NotOffered(name, "calling tools");
    }
  }
  for (const char* name : {"tool_choice", "function_call"}) {
    const json* value = Find(body, name);
    if (value != nullptr && *value != "none" && *value != "auto") {
      return NotOffered(name, "calling tools");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ToolCall> ReadCall(const std::string& field,
                                  const json& function) {
  ToolCall out;
  XC_ASSIGN_OR_RETURN(out.name, ToName(field, function));
  XC_RETURN_IF_ERROR(ReadString(function, "arguments", &out.arguments));
  XC_RETURN_IF_ERROR(
      WithField(CheckText(field + ".arguments", out.arguments, kMaxTextBytes),
                field + ".arguments"));
  if (out.arguments.empty()) out.arguments = "{}";
  return out;
}

absl::StatusOr<std::vector<ToolCall>> ReadCalls(const std::string& field,
                                                const json& message) {
  std::vector<ToolCall> out;
  if (const json* old = Find(message, "function_call")) {
    if (!old->empty()) {
      return NotOffered(field + ".function_call", "what tools came after");
    }
  }
  const json* calls = Find(message, "tool_calls");
  if (calls == nullptr) return out;
  if (!calls->is_array() || calls->size() > kMaxCalls) {
    return JsonFieldError(field + ".tool_calls",
                          absl::StrCat("an array of at most ", kMaxCalls),
                          *calls);
  }
  for (const json& call : *calls) {
    const std::string name =
        absl::StrCat(field, ".tool_calls[", out.size(), "]");
    const json* function = call.is_object() ? Find(call, "function") : nullptr;
    if (function == nullptr || !function->is_object()) {
      return JsonFieldError(name + ".function", "an object",
                            function == nullptr ? json() : *function);
    }
    XC_ASSIGN_OR_RETURN(ToolCall next, ReadCall(name + ".function", *function));
    out.push_back(std::move(next));
  }
  return out;
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

}  // namespace xcache
