#include "server/http/responses_request.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/core/server_core.h"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"
#include "server/http/format_request.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/tool_request.h"

namespace xcache {
namespace {

using nlohmann::json;

// OpenAI's, in characters; UTF-8 has up to four bytes for one.
constexpr size_t kMaxMetadata = 16;
constexpr size_t kMaxMetadataKeyBytes = 4 * 64;
constexpr size_t kMaxMetadataValueBytes = 4 * 512;
constexpr size_t kMaxConversationItems = 20;
constexpr size_t kMaxIdBytes = 256;
constexpr int kMaxPage = 100;

absl::StatusOr<json> ReadMetadata(const json& body) {
  const json* metadata = Find(body, "metadata");
  if (metadata == nullptr) return json();
  if (!metadata->is_object() || metadata->size() > kMaxMetadata) {
    return JsonFieldError("metadata",
                          absl::StrCat("an object of at most ", kMaxMetadata),
                          *metadata);
  }
  for (const auto& [key, value] : metadata->items()) {
    if (key.size() > kMaxMetadataKeyBytes || !value.is_string() ||
        value.get_ref<const std::string&>().size() > kMaxMetadataValueBytes) {
      return JsonFieldError("metadata",
                            "of keys of at most 64 characters and texts of at "
                            "most 512",
                            value);
    }
  }
  // Escapes make texts longer.
  if (const size_t size = JsonBytes(*metadata).size();
      size > kMaxSessionDataBytes) {
    return WithField(
        FieldError("metadata",
                   absl::StrCat("at most ", kMaxSessionDataBytes, " bytes"),
                   size),
        "metadata");
  }
  return *metadata;
}

// Items as messages: an assistant's calls are of its message before them, or
// make one, and results that follow each other are one of the user's.
class ItemReader {
 public:
  absl::Status Add(const std::string& field, const json& item) {
    if (!item.is_object()) return JsonFieldError(field, "an object", item);
    const json* type = Find(item, "type");
    if (type != nullptr && !type->is_string()) {
      return JsonFieldError(field + ".type", "a string", *type);
    }
    if (type != nullptr && *type == "function_call_output") {
      XC_ASSIGN_OR_RETURN(std::string result,
                          ToContent(field + ".output", Find(item, "output"),
                                    /*is_item=*/true));
      results_.push_back(std::move(result));
      return absl::OkStatus();
    }
    XC_RETURN_IF_ERROR(Flush());
    if (type != nullptr && *type == "function_call") {
      XC_ASSIGN_OR_RETURN(const ToolCall call, ReadCall(field, item));
      if (out_.empty() || out_.back().role != Role::kAssistant) {
        out_.push_back({.role = Role::kAssistant, .content = ""});
      }
      std::string& text = out_.back().content;
      text = WithCalls(text, {&call, 1});
      return WithField(CheckText(field, text, kMaxTextBytes), field);
    }
    if (type != nullptr && *type != "message") {
      return NotOffered(field + ".type", "an item of another kind");
    }
    XC_ASSIGN_OR_RETURN(ChatMessage message,
                        ToMessage(field, item, /*is_item=*/true));
    out_.push_back(std::move(message));
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<ChatMessage>> Finish() {
    XC_RETURN_IF_ERROR(Flush());
    return std::move(out_);
  }

 private:
  absl::Status Flush() {
    return WithField(FlushResults("input", &results_, &out_), "input");
  }

  std::vector<ChatMessage> out_;
  std::vector<std::string> results_;
};

absl::StatusOr<std::vector<ChatMessage>> ToItems(const std::string& field,
                                                 const json& items,
                                                 size_t most) {
  if (!items.is_array()) {
    return JsonFieldError(field, "an array of items", items);
  }
  if (items.size() > most) {
    return WithField(FieldError(field, absl::StrCat("at most ", most, " items"),
                                items.size()),
                     field);
  }
  ItemReader reader;
  for (size_t i = 0; i < items.size(); ++i) {
    XC_RETURN_IF_ERROR(reader.Add(absl::StrCat(field, "[", i, "]"), items[i]));
  }
  return reader.Finish();
}

absl::Status ReadId(const json& body, const char* name, std::string* out) {
  XC_RETURN_IF_ERROR(ReadString(body, name, out));
  if (out->size() <= kMaxIdBytes) return absl::OkStatus();
  return JsonFieldError(name, "an id", *Find(body, name));
}

absl::Status ReadConversation(const json& body, std::string* out) {
  const json* conversation = Find(body, "conversation");
  if (conversation == nullptr || conversation->is_string()) {
    return ReadId(body, "conversation", out);
  }
  const json* id =
      conversation->is_object() ? Find(*conversation, "id") : nullptr;
  if (id == nullptr || !id->is_string()) {
    return JsonFieldError("conversation", "an id, or an object with one",
                          *conversation);
  }
  return WithField(ReadId(*conversation, "id", out), "conversation");
}

// What a client relies on where it asks for it must not be passed over.
absl::Status RefuseUnoffered(const json& body) {
  bool background = false;
  XC_RETURN_IF_ERROR(ReadBool(body, "background", &background));
  if (background) return NotOffered("background", "working in the background");
  if (const json* truncation = Find(body, "truncation");
      truncation != nullptr && *truncation != "disabled") {
    return NotOffered("truncation", "leaving items out");
  }
  if (Find(body, "prompt") != nullptr) {
    return NotOffered("prompt", "a prompt's template");
  }
  return absl::OkStatus();
}

absl::Status ReadLogprobs(const json& body, ResponseRequest* out) {
  if (const json* include = Find(body, "include")) {
    if (!include->is_array()) {
      return JsonFieldError("include", "an array", *include);
    }
    for (const json& what : *include) {
      if (what == "message.output_text.logprobs") out->logprobs = true;
    }
  }
  std::optional<int64_t> top;
  XC_RETURN_IF_ERROR(ReadInt(body, "top_logprobs", 0, kMaxTopLogprobs, &top));
  if (top.value_or(0) > 0) out->logprobs = true;
  if (out->logprobs) {
    out->options.num_logprobs = static_cast<int>(1 + top.value_or(0));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ResponseRequest> ToResponseRequest(const json& body,
                                                  int vocab_size) {
  ResponseRequest out;
  XC_RETURN_IF_ERROR(RefuseUnoffered(body));
  XC_RETURN_IF_ERROR(ReadParams(body, vocab_size, &out));
  XC_RETURN_IF_ERROR(ReadTextFormat(body, &out.options.grammar));
  out.echo = json::object();
  ToolRequest tools;
  XC_RETURN_IF_ERROR(ReadResponseTools(body, &tools, &out.echo));
  if (out.n != 1) return NotOffered("n", "more than one answer");
  std::optional<int64_t> max_tokens = std::numeric_limits<int64_t>::max();
  XC_RETURN_IF_ERROR(
      ReadInt(body, "max_output_tokens", 1, kMaxJsonInt, &max_tokens));
  out.options.max_tokens = *max_tokens;
  XC_RETURN_IF_ERROR(ReadLogprobs(body, &out));
  XC_RETURN_IF_ERROR(ReadBool(body, "store", &out.store));
  XC_RETURN_IF_ERROR(ReadId(body, "previous_response_id", &out.previous));
  XC_RETURN_IF_ERROR(ReadConversation(body, &out.conversation));
  if (!out.previous.empty() && !out.conversation.empty()) {
    return WithField(
        absl::InvalidArgumentError(
            "previous_response_id and conversation: one of the two at most"),
        "previous_response_id");
  }
  if (Find(body, "instructions") != nullptr) {
    std::string text;
    XC_RETURN_IF_ERROR(ReadString(body, "instructions", &text));
    XC_RETURN_IF_ERROR(WithField(CheckText("instructions", text, kMaxTextBytes),
                                 "instructions"));
    out.instructions = std::move(text);
  }
  const json* input = Find(body, "input");
  if (input != nullptr && input->is_string()) {
    ChatMessage message{.role = Role::kUser,
                        .content = input->get<std::string>()};
    XC_RETURN_IF_ERROR(
        WithField(CheckText("input", message.content, kMaxTextBytes), "input"));
    out.input.push_back(std::move(message));
  } else if (input == nullptr || !input->is_array() || input->empty()) {
    return JsonFieldError("input", "a string, or an array of at least one item",
                          input == nullptr ? json() : *input);
  } else {
    XC_ASSIGN_OR_RETURN(out.input, ToItems("input", *input, kMaxMessages));
  }
  XC_ASSIGN_OR_RETURN(json metadata, ReadMetadata(body));
  out.echo["metadata"] =
      metadata.is_null() ? json::object() : std::move(metadata);
  for (const char* name : {"temperature", "top_p", "max_output_tokens"}) {
    if (const json* value = Find(body, name)) out.echo[name] = *value;
  }
  if (Find(body, "text") != nullptr &&
      out.options.grammar.kind != GrammarSpec::Kind::kNone) {
    json format = body["text"]["format"];
    if (format.contains("schema")) {
      format["schema"] = json::parse(out.options.grammar.text);
    }
    out.echo["text"]["format"] = std::move(format);
  }
  out.tools = std::move(tools.tools);
  if (!out.tools.empty()) {
    if (out.logprobs) return NotOffered("include", "logprobs beside tools");
    out.options.grammar =
        WithFormat(std::move(tools.grammar), std::move(out.options.grammar));
  }
  if (!out.previous.empty()) out.echo["previous_response_id"] = out.previous;
  if (!out.conversation.empty()) {
    out.echo["conversation"] = {{"id", out.conversation}};
  }
  return out;
}

absl::StatusOr<ConversationRequest> ToConversationRequest(const json& body) {
  ConversationRequest out;
  XC_ASSIGN_OR_RETURN(out.metadata, ReadMetadata(body));
  if (const json* items = Find(body, "items")) {
    XC_ASSIGN_OR_RETURN(out.items,
                        ToItems("items", *items, kMaxConversationItems));
  }
  return out;
}

std::string Unescape(std::string_view text) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 &&
        digit(text[i + 2]) >= 0) {
      out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

absl::StatusOr<PageRequest> ToPageRequest(std::string_view query) {
  PageRequest out;
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    const size_t equals = std::min(pair.find('='), pair.size());
    const std::string_view name = pair.substr(0, equals);
    const std::string value =
        Unescape(pair.substr(std::min(equals + 1, pair.size())));
    if (name == "limit" && (!absl::SimpleAtoi(value, &out.limit) ||
                            out.limit < 1 || out.limit > kMaxPage)) {
      return JsonFieldError("limit", absl::StrCat("in [1, ", kMaxPage, "]"),
                            ToUtf8(value));
    }
    if (name == "order") {
      if (value != "asc" && value != "desc") {
        return JsonFieldError("order", "asc or desc", ToUtf8(value));
      }
      out.descending = value == "desc";
    }
    if (name == "after") out.after = value;
  }
  return out;
}

}  // namespace xcache
