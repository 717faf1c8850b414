#include "server/http/tool_request.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "server/core/server_core.h"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/json_order.h"

namespace xcache {
namespace {

using nlohmann::json;

absl::StatusOr<std::string> ToName(const std::string& field,
                                   const json& object) {
  const std::string place = field + ".name";
  const json* name = object.is_object() ? Find(object, "name") : nullptr;
  if (name == nullptr || !name->is_string()) {
    return JsonFieldError(place, ToolNameText(),
                          name == nullptr ? json() : *name);
  }
  std::string text = name->get<std::string>();
  XC_RETURN_IF_ERROR(WithField(CheckToolName(place, text), place));
  return text;
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
  out.text = SpacedJson(text);
  const std::string place = field + ".function.parameters";
  const json* parameters = Find(*function, "parameters");
  std::string schema;
  if (parameters != nullptr) {
    if (!parameters->is_object()) {
      return JsonFieldError(place, "a JSON schema", *parameters);
    }
    schema = std::string(RawMember(RawMember(text, "function"), "parameters"));
    if (schema.empty()) schema = JsonBytes(*parameters);
  }
  bool strict = false;
  XC_RETURN_IF_ERROR(ReadBool(*function, "strict", &strict));
  auto held = ArgumentsSchema(place, std::move(schema), strict);
  XC_RETURN_IF_ERROR(WithField(held.status(), place));
  out.schema = *std::move(held);
  return out;
}

absl::StatusOr<ToolChoice> ReadChoice(const json& body) {
  ToolChoice out;
  XC_RETURN_IF_ERROR(ReadBool(body, "parallel_tool_calls", &out.parallel));
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
  XC_ASSIGN_OR_RETURN(const ToolChoice choice, ReadChoice(body));
  const json* tools = Find(body, "tools");
  if (tools != nullptr && !tools->is_array()) {
    return JsonFieldError("tools", "an array", *tools);
  }
  if (tools != nullptr) {
    XC_RETURN_IF_ERROR(
        WithField(CheckNumTools("tools", tools->size()), "tools"));
    for (const json& tool : *tools) {
      const std::string field = absl::StrCat("tools[", out->tools.size(), "]");
      XC_ASSIGN_OR_RETURN(ToolDef next, ToTool(field, tool));
      out->tools.push_back(std::move(next));
    }
  }
  const std::string_view chosen =
      out->tools.empty() ? "tool_choice" : "tool_choice.function.name";
  XC_RETURN_IF_ERROR(
      WithField(CheckChoice(chosen, choice, out->tools), chosen));
  if (choice.none) out->tools.clear();
  if (out->tools.empty()) return absl::OkStatus();
  auto grammar = CallGrammar("tools", choice, out->tools);
  XC_RETURN_IF_ERROR(WithField(grammar.status(), "tools"));
  out->grammar = *std::move(grammar);
  return absl::OkStatus();
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

}  // namespace xcache
