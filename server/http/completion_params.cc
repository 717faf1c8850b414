#include "server/http/completion_params.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/frontend/text_input.h"
#include "server/http/format_request.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/tool_request.h"

namespace xcache {
namespace {

using nlohmann::json;

absl::Status ReadStops(const json& body, std::vector<std::string>* out) {
  const json* value = Find(body, "stop");
  if (value == nullptr) return absl::OkStatus();
  if (value->is_string()) {
    // Some clients say "none" so.
    if (!value->get_ref<const std::string&>().empty()) {
      out->push_back(value->get<std::string>());
    }
    return absl::OkStatus();
  }
  if (!value->is_array()) {
    return JsonFieldError("stop", "a string or an array of strings", *value);
  }
  for (const json& stop : *value) {
    if (!stop.is_string()) {
      return JsonFieldError(absl::StrCat("stop[", out->size(), "]"), "a string",
                            stop);
    }
    out->push_back(stop.get<std::string>());
    if (out->size() > kMaxStops) break;  // the core says what is wrong
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(const json& body, int vocab_size,
                           std::vector<std::pair<TokenId, float>>* out) {
  const json* value = Find(body, "logit_bias");
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_object()) {
    return JsonFieldError("logit_bias", "an object of token ids and numbers",
                          *value);
  }
  for (const auto& [key, bias] : value->items()) {
    int token = 0;
    if (!absl::SimpleAtoi(key, &token) || token < 0 || token >= vocab_size) {
      return JsonFieldError(
          "logit_bias", absl::StrCat("of token ids in [0, ", vocab_size, ")"),
          json(key));
    }
    if (!bias.is_number()) {
      return JsonFieldError(absl::StrCat("logit_bias.", token), "a number",
                            bias);
    }
    const double number = bias.get<double>();
    if (!(std::abs(number) <= 100)) {
      return JsonFieldError(absl::StrCat("logit_bias.", token),
                            "in [-100, 100]", bias);
    }
    out->emplace_back(token, static_cast<float>(number));
  }
  return absl::OkStatus();
}

// What a client relies on where it asks for it must not be passed over.
absl::Status RefuseUnoffered(const json& body) {
  for (const char* name : {"grammar", "json_schema"}) {
    if (Find(body, name) != nullptr) {
      return NotOffered(name, "structured output by this name");
    }
  }
  if (const json* modalities = Find(body, "modalities")) {
    if (*modalities != json::array({"text"})) {
      return NotOffered("modalities", "anything but text");
    }
  }
  for (const char* name : {"audio", "web_search_options"}) {
    if (Find(body, name) != nullptr) return NotOffered(name, "this");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ToContent(const std::string& field,
                                      const json* content, bool is_item) {
  if (content == nullptr) {
    return JsonFieldError(field, "a string or an array of text parts",
                          json(nullptr));
  }
  if (content->is_string()) {
    std::string text = content->get<std::string>();
    XC_RETURN_IF_ERROR(WithField(CheckText(field, text, kMaxTextBytes), field));
    return text;
  }
  if (!content->is_array()) {
    return JsonFieldError(field, "a string or an array of text parts",
                          *content);
  }
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const json& part = (*content)[i];
    const std::string name = absl::StrCat(field, "[", i, "]");
    if (!part.is_object()) return JsonFieldError(name, "an object", part);
    const json* type = Find(part, "type");
    if (type == nullptr || !type->is_string()) {
      return JsonFieldError(name + ".type", "a string",
                            type == nullptr ? json(nullptr) : *type);
    }
    const bool is_text =
        *type == "text" ||
        (is_item && (*type == "input_text" || *type == "output_text"));
    if (!is_text) {
      return NotOffered(name + ".type", "a part that is no text");
    }
    const json* value = Find(part, "text");
    if (value == nullptr || !value->is_string()) {
      return JsonFieldError(name + ".text", "a string",
                            value == nullptr ? json(nullptr) : *value);
    }
    text += value->get_ref<const std::string&>();
  }
  XC_RETURN_IF_ERROR(WithField(CheckText(field, text, kMaxTextBytes), field));
  return text;
}

absl::Status ReadParams(const json& body, int vocab_size,
                        CompletionParams* out) {
  XC_RETURN_IF_ERROR(RefuseUnoffered(body));
  if (const json* model = Find(body, "model")) {
    if (!model->is_string()) return JsonFieldError("model", "a string", *model);
    out->model = model->get<std::string>();
  }
  SamplingParams& sampling = out->options.sampling;
  sampling.temperature = 1.0f;
  XC_RETURN_IF_ERROR(
      ReadFloat(body, "temperature", 0, 2, &sampling.temperature));
  XC_RETURN_IF_ERROR(ReadFloat(body, "top_p", 0, 1, &sampling.top_p));
  // OpenAI takes 0: of the best token alone.
  if (sampling.top_p <= 0) sampling.top_p = std::numeric_limits<float>::min();
  XC_RETURN_IF_ERROR(ReadFloat(body, "min_p", 0, 1, &sampling.min_p));
  XC_RETURN_IF_ERROR(
      ReadFloat(body, "presence_penalty", -2, 2, &sampling.presence_penalty));
  XC_RETURN_IF_ERROR(
      ReadFloat(body, "frequency_penalty", -2, 2, &sampling.frequency_penalty));
  XC_RETURN_IF_ERROR(ReadFloat(body, "repetition_penalty", 0.01, 100,
                               &sampling.repetition_penalty));
  std::optional<int64_t> number;
  XC_RETURN_IF_ERROR(ReadInt(body, "top_k", -1, kMaxJsonInt, &number));
  sampling.top_k = static_cast<int>(std::max<int64_t>(0, number.value_or(0)));
  number.reset();
  XC_RETURN_IF_ERROR(ReadInt(body, "penalty_last_n", 0, kMaxJsonInt, &number));
  if (number.has_value()) {
    sampling.penalty_last_n = static_cast<int>(*number);
  }
  number.reset();
  XC_RETURN_IF_ERROR(ReadInt(body, "seed", std::numeric_limits<int64_t>::min(),
                             std::numeric_limits<int64_t>::max(), &number));
  if (number.has_value()) {
    out->options.seed = static_cast<uint64_t>(*number);
  }
  number.reset();
  XC_RETURN_IF_ERROR(ReadInt(body, "n", 1, kMaxAnswers, &number));
  out->n = static_cast<int>(number.value_or(1));
  XC_RETURN_IF_ERROR(ReadStops(body, &out->options.stop));
  XC_RETURN_IF_ERROR(ReadLogitBias(body, vocab_size, &sampling.logit_bias));
  XC_RETURN_IF_ERROR(ReadBool(body, "ignore_eos", &out->options.ignore_eos));
  if (const json* speculate = Find(body, "speculate")) {
    if (!speculate->is_string()) {
      return JsonFieldError("speculate", "ngram or off", *speculate);
    }
    out->options.speculate = speculate->get<std::string>();
  }
  XC_RETURN_IF_ERROR(ReadBool(body, "stream", &out->stream));
  if (const json* options = Find(body, "stream_options")) {
    if (!options->is_object()) {
      return JsonFieldError("stream_options", "an object", *options);
    }
    if (!out->stream) {
      return WithField(absl::InvalidArgumentError(
                           "stream_options is for where stream is true"),
                       "stream_options");
    }
    XC_RETURN_IF_ERROR(
        ReadBool(*options, "include_usage", &out->include_usage));
  }
  XC_RETURN_IF_ERROR(ReadFormat(body, &out->options.grammar));
  // What the core would refuse too, but without the field's name for programs.
  if (absl::Status status = CheckOptions(out->options); !status.ok()) {
    for (const char* field : {"stop", "speculate"}) {
      if (status.message().find(field) == 0) return WithField(status, field);
    }
    return WithField(status, "");
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatMessage> ToMessage(const std::string& field,
                                      const json& message, bool is_item) {
  if (!message.is_object()) return JsonFieldError(field, "an object", message);
  ChatMessage out;
  const json* role = Find(message, "role");
  if (role != nullptr && (*role == "system" || *role == "developer")) {
    out.role = Role::kSystem;
  } else if (role != nullptr && *role == "user") {
    out.role = Role::kUser;
  } else if (role != nullptr && *role == "assistant") {
    out.role = Role::kAssistant;
  } else if (role != nullptr && (*role == "tool" || *role == "function")) {
    return NotOffered(field + ".role", "calling tools");
  } else {
    return JsonFieldError(field + ".role",
                          "system, developer, user or assistant",
                          role == nullptr ? json(nullptr) : *role);
  }
  XC_ASSIGN_OR_RETURN(const std::vector<ToolCall> calls,
                      ReadCalls(field, message));
  if (!calls.empty() && (is_item || out.role != Role::kAssistant)) {
    return NotOffered(field + ".tool_calls", "calls of others than assistants");
  }
  const json* content = Find(message, "content");
  if (content != nullptr || calls.empty()) {
    XC_ASSIGN_OR_RETURN(out.content,
                        ToContent(field + ".content", content, is_item));
  }
  if (!calls.empty()) out.content = WithCalls(out.content, calls);
  return out;
}

}  // namespace xcache
