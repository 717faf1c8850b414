#include "server/http/openai_request.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/tool_request.h"

namespace xcache {
namespace {

using nlohmann::json;

// OpenAI's, where a completion does not say.
constexpr int64_t kCompletionTokens = 16;
constexpr int64_t kMaxOldLogprobs = kMaxLogprobs - 1;

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

// A text or token ids, or, `several`, an array of them.
bool IsSeveral(const json& prompts) {
  return prompts.is_array() && !prompts.empty() &&
         (prompts.front().is_string() || prompts.front().is_array());
}

absl::Status ToPrompts(const std::string& field, const json& prompts,
                       int vocab_size, std::vector<Prompt>* out) {
  if (!IsSeveral(prompts)) {
    XC_ASSIGN_OR_RETURN(Prompt one, ToPrompt(field, prompts, vocab_size));
    out->push_back(std::move(one));
    return absl::OkStatus();
  }
  for (const json& each : prompts) {
    XC_ASSIGN_OR_RETURN(
        Prompt one,
        ToPrompt(absl::StrCat(field, "[", out->size(), "]"), each, vocab_size));
    out->push_back(std::move(one));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ChatMessage>> ToMessages(const json& messages) {
  std::vector<ChatMessage> out;
  std::vector<std::string> results;
  const auto flush = [&] {
    return WithField(FlushResults("messages", &results, &out), "messages");
  };
  for (size_t i = 0; i < messages.size(); ++i) {
    const json& message = messages[i];
    const std::string field = absl::StrCat("messages[", i, "]");
    const json* role = message.is_object() ? Find(message, "role") : nullptr;
    if (role != nullptr && *role == "tool") {
      XC_ASSIGN_OR_RETURN(
          std::string result,
          ToContent(field + ".content", Find(message, "content"), false));
      results.push_back(std::move(result));
      continue;
    }
    XC_RETURN_IF_ERROR(flush());
    XC_ASSIGN_OR_RETURN(ChatMessage next,
                        ToMessage(field, message, /*is_item=*/false));
    XC_RETURN_IF_ERROR(
        WithField(CheckText(field, next.content, kMaxTextBytes), field));
    out.push_back(std::move(next));
  }
  XC_RETURN_IF_ERROR(flush());
  return out;
}

}  // namespace

absl::StatusOr<ChatCompletion> ToChatCompletion(const json& body,
                                                int vocab_size) {
  ChatCompletion out;
  XC_RETURN_IF_ERROR(ReadParams(body, vocab_size, &out));
  // To the context's end, where nothing is said.
  std::optional<int64_t> max_tokens = std::numeric_limits<int64_t>::max();
  XC_RETURN_IF_ERROR(ReadInt(body, "max_tokens", 1, kMaxJsonInt, &max_tokens));
  XC_RETURN_IF_ERROR(
      ReadInt(body, "max_completion_tokens", 1, kMaxJsonInt, &max_tokens));
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
  XC_ASSIGN_OR_RETURN(out.messages, ToMessages(*messages));
  ToolRequest tools;
  XC_RETURN_IF_ERROR(ReadTools(body, &tools));
  out.tools = std::move(tools.tools);
  if (out.tools.empty()) return out;
  out.options.grammar =
      WithFormat(std::move(tools.grammar), std::move(out.options.grammar));
  return out;
}

absl::StatusOr<TextCompletion> ToTextCompletion(const json& body,
                                                int vocab_size) {
  TextCompletion out;
  XC_RETURN_IF_ERROR(RefuseTools(body));
  XC_RETURN_IF_ERROR(ReadParams(body, vocab_size, &out));
  XC_RETURN_IF_ERROR(ReadBool(body, "echo", &out.echo));
  std::optional<int64_t> max_tokens = kCompletionTokens;
  XC_RETURN_IF_ERROR(ReadInt(body, "max_tokens", 0, kMaxJsonInt, &max_tokens));
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
  XC_RETURN_IF_ERROR(ReadInt(body, "best_of", 1, kMaxAnswers, &best_of));
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
  const size_t answers =
      (IsSeveral(*prompt) ? prompt->size() : 1) * static_cast<size_t>(out.n);
  if (answers > static_cast<size_t>(kMaxAnswers)) {
    return WithField(
        FieldError("prompt",
                   absl::StrCat("for at most ", kMaxAnswers, " answers"),
                   answers),
        "prompt");
  }
  XC_RETURN_IF_ERROR(ToPrompts("prompt", *prompt, vocab_size, &out.prompts));
  return out;
}

absl::StatusOr<Embedding> ToEmbedding(const json& body, int vocab_size,
                                      int width) {
  Embedding out;
  XC_RETURN_IF_ERROR(ReadString(body, "model", &out.model));
  std::string format = "float", pooling;
  XC_RETURN_IF_ERROR(ReadString(body, "encoding_format", &format));
  out.base64 = format == "base64";
  if (!out.base64 && format != "float") {
    return JsonFieldError("encoding_format", "float or base64", format);
  }
  XC_RETURN_IF_ERROR(ReadString(body, "pooling", &pooling));
  if (pooling == "mean") {
    out.pooling = Pooling::kMean;
  } else if (pooling == "last") {
    out.pooling = Pooling::kLast;
  } else if (!pooling.empty()) {
    return JsonFieldError("pooling", "mean or last", pooling);
  }
  XC_RETURN_IF_ERROR(ReadInt(body, "dimensions", 1, width, &out.dimensions));
  const json* input = Find(body, "input");
  if (input == nullptr) {
    return JsonFieldError("input", "a string, token ids, or an array of them",
                          json(nullptr));
  }
  if (IsSeveral(*input) && input->size() > kMaxEmbeddings) {
    return WithField(
        FieldError("input", absl::StrCat("at most ", kMaxEmbeddings, " texts"),
                   input->size()),
        "input");
  }
  XC_RETURN_IF_ERROR(ToPrompts("input", *input, vocab_size, &out.inputs));
  for (size_t i = 0; i < out.inputs.size(); ++i) {
    if (!out.inputs[i].text.empty() || !out.inputs[i].tokens.empty()) continue;
    return JsonFieldError(
        IsSeveral(*input) ? absl::StrCat("input[", i, "]") : "input",
        "a text of at least one token", json(""));
  }
  return out;
}

}  // namespace xcache
