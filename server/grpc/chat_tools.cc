#include "server/grpc/chat_tools.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"

namespace xcache {
namespace {

// As OpenAI's clients write a tool, in their order.
std::string ToolText(const v1::Tool& tool) {
  const auto quoted = [](const std::string& text) {
    return nlohmann::json(text).dump();
  };
  std::string function = "\"name\":" + quoted(tool.name());
  if (!tool.description().empty()) {
    absl::StrAppend(&function, ",\"description\":", quoted(tool.description()));
  }
  if (!tool.parameters().empty()) {
    absl::StrAppend(&function, ",\"parameters\":", tool.parameters());
  }
  if (tool.strict()) function += ",\"strict\":true";
  return SpacedJson(
      absl::StrCat("{\"type\":\"function\",\"function\":{", function, "}}"));
}

absl::Status CheckParameters(const std::string& field,
                             const std::string& text) {
  XC_RETURN_IF_ERROR(CheckText(field, text, kMaxTextBytes));
  if (text.empty()) return absl::OkStatus();
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != text.npos && text[first] == '{' &&
      nlohmann::json::accept(text)) {
    return absl::OkStatus();
  }
  return FieldError(field, "a JSON schema: the text of an object",
                    "another text");
}

absl::StatusOr<ToolDef> ToTool(const std::string& field, const v1::Tool& tool) {
  XC_RETURN_IF_ERROR(CheckToolName(field + ".name", tool.name()));
  XC_RETURN_IF_ERROR(
      CheckText(field + ".description", tool.description(), kMaxTextBytes));
  const std::string place = field + ".parameters";
  XC_RETURN_IF_ERROR(CheckParameters(place, tool.parameters()));
  ToolDef out;
  out.name = tool.name();
  out.text = ToolText(tool);
  XC_ASSIGN_OR_RETURN(out.schema,
                      ArgumentsSchema(place, tool.parameters(), tool.strict()));
  return out;
}

absl::StatusOr<ToolChoice> ToChoice(const v1::ChatRequest& request) {
  ToolChoice out;
  out.parallel =
      !request.has_parallel_tool_calls() || request.parallel_tool_calls();
  const v1::ToolChoice& choice = request.tool_choice();
  switch (choice.choice_case()) {
    case v1::ToolChoice::kName:
      XC_RETURN_IF_ERROR(CheckToolName("tool_choice.name", choice.name()));
      out.required = true;
      out.name = choice.name();
      return out;
    case v1::ToolChoice::kMode:
      break;
    case v1::ToolChoice::CHOICE_NOT_SET:
      return out;
  }
  switch (choice.mode()) {
    case v1::ToolChoice::MODE_UNSPECIFIED:
    case v1::ToolChoice::MODE_AUTO:
      return out;
    case v1::ToolChoice::MODE_NONE:
      out.none = true;
      return out;
    case v1::ToolChoice::MODE_REQUIRED:
      out.required = true;
      return out;
    default:  // what a later version of the proto may add
      return FieldError("tool_choice.mode",
                        "MODE_AUTO, MODE_NONE or MODE_REQUIRED",
                        static_cast<int>(choice.mode()));
  }
}

}  // namespace

absl::StatusOr<std::vector<ToolDef>> ToTools(const v1::ChatRequest& request,
                                             GrammarSpec* grammar) {
  XC_ASSIGN_OR_RETURN(const ToolChoice choice, ToChoice(request));
  const auto count = static_cast<size_t>(request.tools_size());
  XC_RETURN_IF_ERROR(CheckNumTools("tools", count));
  std::vector<ToolDef> out;
  out.reserve(count);
  for (const v1::Tool& tool : request.tools()) {
    XC_ASSIGN_OR_RETURN(ToolDef next,
                        ToTool(absl::StrCat("tools[", out.size(), "]"), tool));
    out.push_back(std::move(next));
  }
  XC_RETURN_IF_ERROR(CheckChoice("tool_choice", choice, out));
  if (choice.none) out.clear();
  if (out.empty()) return out;
  XC_ASSIGN_OR_RETURN(GrammarSpec calls, CallGrammar("tools", choice, out));
  *grammar = WithFormat(std::move(calls), std::move(*grammar));
  return out;
}

absl::StatusOr<std::vector<ToolCall>> ToCalls(std::string_view field,
                                              const v1::Message& message) {
  const std::string place = absl::StrCat(std::string(field), ".tool_calls");
  const auto count = static_cast<size_t>(message.tool_calls_size());
  if (count > 0 && message.role() != v1::ROLE_ASSISTANT) {
    return FieldError(place, "empty where the role is not ROLE_ASSISTANT",
                      count);
  }
  if (count > kMaxCalls) {
    return FieldError(place, absl::StrCat("at most ", kMaxCalls), count);
  }
  std::vector<ToolCall> out;
  out.reserve(count);
  for (const v1::ToolCall& call : message.tool_calls()) {
    const std::string name = absl::StrCat(place, "[", out.size(), "]");
    XC_RETURN_IF_ERROR(CheckToolName(name + ".name", call.name()));
    XC_RETURN_IF_ERROR(
        CheckText(name + ".arguments", call.arguments(), kMaxTextBytes));
    out.push_back({.name = call.name(), .arguments = call.arguments()});
  }
  return out;
}

void ToProto(const std::vector<AnswerPart>& parts, v1::ChatResponse* out) {
  for (const AnswerPart& part : parts) {
    switch (part.kind) {
      case AnswerPart::Kind::kThought:
        out->mutable_reasoning()->append(part.text);
        break;
      case AnswerPart::Kind::kText:
        out->mutable_delta()->append(part.text);
        break;
      case AnswerPart::Kind::kCall: {
        v1::ToolCallDelta* const call = out->add_tool_calls();
        call->set_index(static_cast<uint32_t>(part.call));
        call->set_id(part.id);
        call->set_name(part.text);
        break;
      }
      case AnswerPart::Kind::kArguments: {
        const auto index = static_cast<uint32_t>(part.call);
        const int n = out->tool_calls_size();
        v1::ToolCallDelta* const call =
            n > 0 && out->tool_calls(n - 1).index() == index
                ? out->mutable_tool_calls(n - 1)
                : out->add_tool_calls();
        call->set_index(index);
        call->mutable_arguments()->append(part.text);
        break;
      }
    }
  }
}

}  // namespace xcache
