#include "server/http/format_request.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/json_order.h"

namespace xcache {
namespace {

using nlohmann::json;
using Kind = GrammarSpec::Kind;

// A schema, or, as KeepOrders leaves it, its text.
absl::Status ReadSchema(const std::string& field, const json* schema,
                        GrammarSpec* out) {
  if (schema == nullptr ||
      !(schema->is_object() || schema->is_string() || schema->is_boolean())) {
    return JsonFieldError(field, "a JSON schema",
                          schema == nullptr ? json() : *schema);
  }
  out->kind = Kind::kJsonSchema;
  out->text = OrderedText(*schema);
  return absl::OkStatus();
}

// {"type": "text"}, "json_object" or "json_schema". `where`: of what the schema
// is a member; empty: of the format itself.
absl::Status ReadTyped(const std::string& field, const json& format,
                       const char* where, GrammarSpec* out) {
  const json* type = format.is_object() ? Find(format, "type") : nullptr;
  if (type == nullptr || !type->is_string()) {
    return JsonFieldError(field, "an object with a type", format);
  }
  if (*type == "text") return absl::OkStatus();
  if (*type == "json_object") {
    out->kind = Kind::kJsonObject;
    return absl::OkStatus();
  }
  if (*type != "json_schema") {
    return NotOffered(field,
                      "a format that is not text, json_object or json_schema");
  }
  std::string name = field;
  const json* holder = &format;
  if (*where != '\0') {
    absl::StrAppend(&name, ".", where);
    holder = Find(format, where);
    if (holder == nullptr || !holder->is_object()) {
      return JsonFieldError(name, "an object with a schema",
                            holder == nullptr ? json() : *holder);
    }
  }
  return ReadSchema(name + ".schema", Find(*holder, "schema"), out);
}

absl::Status ReadRegex(const std::string& field, const json& regex,
                       GrammarSpec* out) {
  if (!regex.is_string()) return JsonFieldError(field, "a string", regex);
  out->kind = Kind::kRegex;
  out->text = regex.get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadChoice(const std::string& field, const json& choice,
                        GrammarSpec* out) {
  if (!choice.is_array()) {
    return JsonFieldError(field, "an array of strings", choice);
  }
  out->kind = Kind::kChoice;
  for (const json& text : choice) {
    if (!text.is_string()) {
      return JsonFieldError(absl::StrCat(field, "[", out->choices.size(), "]"),
                            "a string", text);
    }
    out->choices.push_back(text.get<std::string>());
  }
  return absl::OkStatus();
}

// What vLLM names so, in `holder`; `add` takes each.
template <typename Add>
absl::Status ReadVllm(const std::string& prefix, const json& holder, Add add) {
  const auto find = [&](const char* name) {
    return Find(holder, (prefix + name).c_str());
  };
  const auto field = [&](const char* name) {
    return prefix.empty() ? absl::StrCat("structured_outputs.", name)
                          : prefix + name;
  };
  if (const json* schema = find("json")) {
    GrammarSpec spec;
    XC_RETURN_IF_ERROR(ReadSchema(field("json"), schema, &spec));
    XC_RETURN_IF_ERROR(add(field("json"), spec));
  }
  if (const json* regex = find("regex")) {
    GrammarSpec spec;
    XC_RETURN_IF_ERROR(ReadRegex(field("regex"), *regex, &spec));
    XC_RETURN_IF_ERROR(add(field("regex"), spec));
  }
  if (const json* choice = find("choice")) {
    GrammarSpec spec;
    XC_RETURN_IF_ERROR(ReadChoice(field("choice"), *choice, &spec));
    XC_RETURN_IF_ERROR(add(field("choice"), spec));
  }
  if (const json* any = find("json_object"); any != nullptr && *any == true) {
    GrammarSpec spec;
    spec.kind = Kind::kJsonObject;
    XC_RETURN_IF_ERROR(add(field("json_object"), spec));
  }
  for (const char* name : {"grammar", "structural_tag"}) {
    if (find(name) != nullptr) return NotOffered(field(name), "this format");
  }
  return absl::OkStatus();
}

// The limits that need no compiler.
absl::Status Check(const std::string& field, const GrammarSpec& spec) {
  return WithField(CheckGrammar(spec), field);
}

}  // namespace

absl::Status ReadFormat(const json& body, GrammarSpec* out) {
  int count = 0;
  const auto add = [&](const std::string& field,
                       const GrammarSpec& spec) -> absl::Status {
    if (spec.kind == Kind::kNone) return absl::OkStatus();
    XC_RETURN_IF_ERROR(Check(field, spec));
    *out = spec;
    if (++count == 1) return absl::OkStatus();
    return WithField(absl::InvalidArgumentError(absl::StrCat(
                         field, ": an answer has one format at most")),
                     field);
  };
  if (const json* format = Find(body, "response_format")) {
    const std::string field = "response_format";
    GrammarSpec spec;
    XC_RETURN_IF_ERROR(ReadTyped(field, *format, "json_schema", &spec));
    XC_RETURN_IF_ERROR(add(field, spec));
  }
  if (const json* outputs = Find(body, "structured_outputs")) {
    if (!outputs->is_object()) {
      return JsonFieldError("structured_outputs", "an object", *outputs);
    }
    XC_RETURN_IF_ERROR(ReadVllm("", *outputs, add));
  }
  return ReadVllm("guided_", body, add);
}

absl::Status ReadTextFormat(const json& body, GrammarSpec* out) {
  const json* text = Find(body, "text");
  if (text == nullptr) return absl::OkStatus();
  if (!text->is_object()) return JsonFieldError("text", "an object", *text);
  const json* format = Find(*text, "format");
  if (format == nullptr) return absl::OkStatus();
  XC_RETURN_IF_ERROR(ReadTyped("text.format", *format, "", out));
  return Check("text.format", *out);
}

}  // namespace xcache
