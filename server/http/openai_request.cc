#include "server/http/openai_request.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "server/frontend/text_input.h"
#include "server/http/json_body.h"

namespace xcache {
namespace {

using nlohmann::json;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
// OpenAI's, where a completion does not say.
constexpr int64_t kCompletionTokens = 16;
constexpr int64_t kMaxOldLogprobs = kMaxLogprobs - 1;

// The field, or null where it is not there or null: clients send null for what
// they do not set.
const json* Find(const json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::Status ReadBool(const json& body, const char* name, bool* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) {
    return JsonFieldError(name, "true or false", *value);
  }
  *out = value->get<bool>();
  return absl::OkStatus();
}

// Whole numbers, also where they are written 1.0.
std::optional<int64_t> ToInteger(const json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > uint64_t{std::numeric_limits<int64_t>::max()}) return {};
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();
  if (number != std::floor(number) || std::abs(number) > 9e15) return {};
  return static_cast<int64_t>(number);
}

// Leaves `out` where the field is not there.
absl::Status ReadInt(const json& body, const char* name, int64_t low,
                     int64_t high, std::optional<int64_t>* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  const std::optional<int64_t> number = ToInteger(*value);
  if (!number.has_value() || *number < low || *number > high) {
    return JsonFieldError(
        name, absl::StrCat("a whole number in [", low, ", ", high, "]"),
        *value);
  }
  *out = number;
  return absl::OkStatus();
}

absl::Status ReadFloat(const json& body, const char* name, double low,
                       double high, float* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number() || value->get<double>() < low ||
      value->get<double>() > high) {
    return JsonFieldError(
        name, absl::StrCat("a number in [", low, ", ", high, "]"), *value);
  }
  *out = static_cast<float>(value->get<double>());
  return absl::OkStatus();
}

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

absl::Status NotOffered(const std::string& field, std::string_view what) {
  return WithField(
      absl::InvalidArgumentError(absl::StrCat(
          field, ": ", std::string(what), " is not offered by this server")),
      field);
}

// What a client relies on where it asks for it must not be passed over.
absl::Status RefuseUnoffered(const json& body) {
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
  if (const json* format = Find(body, "response_format")) {
    const json* type = format->is_object() ? Find(*format, "type") : nullptr;
    if (type == nullptr || !type->is_string()) {
      return JsonFieldError("response_format", "an object with a type",
                            *format);
    }
    if (*type != "text") {
      return NotOffered("response_format", "any format but text");
    }
  }
  for (const char* name :
       {"structured_outputs", "guided_json", "guided_regex", "guided_choice",
        "guided_grammar", "grammar", "json_schema"}) {
    if (Find(body, name) != nullptr) {
      return NotOffered(name, "structured output");
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
  XC_RETURN_IF_ERROR(ReadInt(body, "top_k", -1, kMaxInt, &number));
  sampling.top_k = static_cast<int>(std::max<int64_t>(0, number.value_or(0)));
  number.reset();
  XC_RETURN_IF_ERROR(ReadInt(body, "penalty_last_n", 0, kMaxInt, &number));
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
  XC_RETURN_IF_ERROR(ReadInt(body, "n", 1, kMaxChoices, &number));
  out->n = static_cast<int>(number.value_or(1));
  XC_RETURN_IF_ERROR(ReadStops(body, &out->options.stop));
  XC_RETURN_IF_ERROR(ReadLogitBias(body, vocab_size, &sampling.logit_bias));
  XC_RETURN_IF_ERROR(ReadBool(body, "ignore_eos", &out->options.ignore_eos));
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
  // What the core would refuse too, but without the field's name for programs.
  if (absl::Status status = CheckOptions(out->options); !status.ok()) {
    return WithField(status, status.message().find("stop") == 0 ? "stop" : "");
  }
  return absl::OkStatus();
}

// A text, or an array of parts that are texts.
absl::StatusOr<std::string> ToContent(const std::string& field,
                                      const json* content) {
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
    if (*type != "text") {
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

absl::StatusOr<ChatMessage> ToMessage(const std::string& field,
                                      const json& message) {
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
  for (const char* name : {"tool_calls", "function_call"}) {
    const json* value = Find(message, name);
    if (value != nullptr && !(value->is_array() && value->empty())) {
      return NotOffered(absl::StrCat(field, ".", name), "calling tools");
    }
  }
  XC_ASSIGN_OR_RETURN(out.content,
                      ToContent(field + ".content", Find(message, "content")));
  return out;
}

absl::StatusOr<std::vector<TokenId>> ToTokens(const std::string& field,
                                              const json& ids, int vocab_size) {
  if (ids.size() > static_cast<size_t>(kMaxTokenIds)) {
    return WithField(
        FieldError(field, absl::StrCat("at most ", kMaxTokenIds, " ids"),
                   ids.size()),
        field);
  }
  std::vector<TokenId> out;
  out.reserve(ids.size());
  for (const json& id : ids) {
    const std::optional<int64_t> number = ToInteger(id);
    if (!number.has_value() || *number < 0 || *number >= vocab_size) {
      return JsonFieldError(absl::StrCat(field, "[", out.size(), "]"),
                            absl::StrCat("a token id in [0, ", vocab_size, ")"),
                            id);
    }
    out.push_back(static_cast<TokenId>(*number));
  }
  return out;
}

absl::StatusOr<Prompt> ToPrompt(const std::string& field, const json& value,
                                int vocab_size) {
  Prompt prompt;
  if (value.is_string()) {
    prompt.is_text = true;
    prompt.text = value.get<std::string>();
    XC_RETURN_IF_ERROR(
        WithField(CheckText(field, prompt.text, kMaxTextBytes), field));
    return prompt;
  }
  if (!value.is_array()) {
    return JsonFieldError(field, "a string or an array of token ids", value);
  }
  XC_ASSIGN_OR_RETURN(prompt.tokens, ToTokens(field, value, vocab_size));
  return prompt;
}

}  // namespace

absl::StatusOr<ChatCompletion> ToChatCompletion(const json& body,
                                                int vocab_size) {
  ChatCompletion out;
  XC_RETURN_IF_ERROR(ReadParams(body, vocab_size, &out));
  // To the context's end, where nothing is said.
  std::optional<int64_t> max_tokens = std::numeric_limits<int64_t>::max();
  XC_RETURN_IF_ERROR(ReadInt(body, "max_tokens", 1, kMaxInt, &max_tokens));
  XC_RETURN_IF_ERROR(
      ReadInt(body, "max_completion_tokens", 1, kMaxInt, &max_tokens));
  out.options.max_tokens = *max_tokens;
  XC_RETURN_IF_ERROR(ReadBool(body, "logprobs", &out.logprobs));
  std::optional<int64_t> top;
  XC_RETURN_IF_ERROR(ReadInt(body, "top_logprobs", 0, kMaxTopLogprobs, &top));
  if (top.value_or(0) > 0 && !out.logprobs) {
    return WithField(absl::InvalidArgumentError(
                         "top_logprobs is for where logprobs is true"),
                     "top_logprobs");
  }
  if (out.logprobs) {
    out.options.num_logprobs = static_cast<int>(1 + top.value_or(0));
  }
  const json* messages = Find(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    return JsonFieldError("messages", "an array of at least one message",
                          messages == nullptr ? json(nullptr) : *messages);
  }
  if (messages->size() > static_cast<size_t>(kMaxMessages)) {
    return WithField(
        FieldError("messages", absl::StrCat("at most ", kMaxMessages),
                   messages->size()),
        "messages");
  }
  for (const json& message : *messages) {
    XC_ASSIGN_OR_RETURN(
        ChatMessage next,
        ToMessage(absl::StrCat("messages[", out.messages.size(), "]"),
                  message));
    out.messages.push_back(std::move(next));
  }
  return out;
}

absl::StatusOr<TextCompletion> ToTextCompletion(const json& body,
                                                int vocab_size) {
  TextCompletion out;
  XC_RETURN_IF_ERROR(ReadParams(body, vocab_size, &out));
  XC_RETURN_IF_ERROR(ReadBool(body, "echo", &out.echo));
  std::optional<int64_t> max_tokens = kCompletionTokens;
  XC_RETURN_IF_ERROR(ReadInt(body, "max_tokens", 0, kMaxInt, &max_tokens));
  out.generate = *max_tokens > 0;
  if (!out.generate && !out.echo) {
    return JsonFieldError("max_tokens", "at least 1, where nothing is echoed",
                          json(0));
  }
  out.options.max_tokens = std::max<int64_t>(1, *max_tokens);
  std::optional<int64_t> top;
  XC_RETURN_IF_ERROR(ReadInt(body, "logprobs", 0, kMaxOldLogprobs, &top));
  if (top.has_value()) {
    out.logprobs = true;
    out.top_logprobs = static_cast<int>(*top);
    out.options.num_logprobs = 1 + out.top_logprobs;
  }
  std::optional<int64_t> best_of;
  XC_RETURN_IF_ERROR(ReadInt(body, "best_of", 1, kMaxChoices, &best_of));
  if (best_of.value_or(out.n) != out.n) {
    return NotOffered("best_of", "a choice among more answers than n");
  }
  if (const json* suffix = Find(body, "suffix");
      suffix != nullptr && *suffix != "") {
    return NotOffered("suffix", "filling in");
  }
  if (out.echo && out.logprobs && out.stream) {
    return NotOffered("echo", "a stream with the prompt's logprobs");
  }
  const json* prompt = Find(body, "prompt");
  if (prompt == nullptr) {
    return JsonFieldError("prompt", "a string, token ids, or an array of them",
                          json(nullptr));
  }
  const bool several =
      prompt->is_array() && !prompt->empty() &&
      (prompt->front().is_string() || prompt->front().is_array());
  if (!several) {
    XC_ASSIGN_OR_RETURN(Prompt one, ToPrompt("prompt", *prompt, vocab_size));
    out.prompts.push_back(std::move(one));
    return out;
  }
  const size_t answers = prompt->size() * static_cast<size_t>(out.n);
  if (answers > static_cast<size_t>(kMaxChoices)) {
    return WithField(
        FieldError("prompt",
                   absl::StrCat("for at most ", kMaxChoices, " answers"),
                   answers),
        "prompt");
  }
  for (const json& each : *prompt) {
    XC_ASSIGN_OR_RETURN(
        Prompt one, ToPrompt(absl::StrCat("prompt[", out.prompts.size(), "]"),
                             each, vocab_size));
    out.prompts.push_back(std::move(one));
  }
  return out;
}

}  // namespace xcache
