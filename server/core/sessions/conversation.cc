#include "server/core/sessions/conversation.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "engine/types.h"
#include "server/core/sessions/answer_notes.h"

namespace xcache {
namespace {

constexpr std::string_view kRetokenizedSetting = "retokenized";

ChatMessage ToChatMessage(const SessionMessage& message) {
  return {.role = static_cast<Role>(message.role), .content = message.content};
}

bool StartsWith(std::span<const TokenId> tokens,
                std::span<const TokenId> prefix) {
  return tokens.size() >= prefix.size() &&
         std::equal(prefix.begin(), prefix.end(), tokens.begin());
}

// Whether a model that wrote `body` said `content`: what it reads, up to a stop
// string or an incomplete character within the last token.
bool Reads(const Tokenizer& tokenizer, std::span<const TokenId> body,
           std::string_view content) {
  std::string bytes;
  size_t last_begin = 0;
  for (const TokenId token : body) {
    last_begin = bytes.size();
    bytes += tokenizer.TokenBytes(token, /*with_special=*/false);
  }
  const std::string_view before_last(bytes.data(), last_begin);
  const std::string least =
      ToUtf8(before_last.substr(0, CompleteUtf8Prefix(before_last)));
  return ToUtf8(bytes).starts_with(content) && content.starts_with(least);
}

}  // namespace

std::vector<ChatMessage> MessagesOf(const SessionRecord& record) {
  std::vector<ChatMessage> messages;
  for (const SessionMessage& message : record.messages) {
    messages.push_back(ToChatMessage(message));
  }
  return messages;
}

uint64_t CountAnswers(const SessionRecord& record) {
  return static_cast<uint64_t>(std::count_if(
      record.messages.begin(), record.messages.end(),
      [](const SessionMessage& message) {
        return message.role == static_cast<uint8_t>(Role::kAssistant);
      }));
}

absl::Status Render(const ChatTemplate& chat_template,
                    std::span<const ChatMessage> messages, size_t first_index,
                    std::vector<TokenId>* tokens,
                    std::vector<SessionMessage>* rendered) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    XC_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                        chat_template.RenderMessage(message, first_index + i));
    const auto begin = static_cast<uint32_t>(tokens->size());
    tokens->insert(tokens->end(), ids.begin(), ids.end());
    if (rendered == nullptr) continue;
    rendered->push_back({.role = static_cast<uint8_t>(message.role),
                         .content = message.content,
                         .token_begin = begin,
                         .token_end = static_cast<uint32_t>(tokens->size())});
  }
  return absl::OkStatus();
}

absl::Status Retokenize(const ChatTemplate& chat_template,
                        SessionRecord* record) {
  const std::vector<ChatMessage> messages = MessagesOf(*record);
  XC_RETURN_IF_ERROR(chat_template.CheckOrder({}, messages));
  std::vector<TokenId> tokens;
  std::vector<SessionMessage> rendered;
  XC_RETURN_IF_ERROR(Render(chat_template, messages, 0, &tokens, &rendered));
  record->tokens = std::move(tokens);
  record->messages = std::move(rendered);
  record->page_keys.clear();
  if (CountAnswers(*record) > 0) MarkRetokenized(record);
  return absl::OkStatus();
}

bool TokensMatchText(const ChatTemplate& chat_template,
                     const Tokenizer& tokenizer, const SessionRecord& record) {
  const std::vector<TokenId> header = chat_template.AssistantHeader();
  const std::vector<TokenId> end = chat_template.AssistantEnd(false);
  uint32_t position = 0;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const SessionMessage& message = record.messages[i];
    if (message.token_begin != position) return false;
    position = message.token_end;
    const auto tokens = std::span(record.tokens)
                            .subspan(message.token_begin,
                                     message.token_end - message.token_begin);
    const auto rendered =
        chat_template.RenderMessage(ToChatMessage(message), i);
    if (!rendered.ok()) return false;
    if (std::equal(tokens.begin(), tokens.end(), rendered->begin(),
                   rendered->end())) {
      continue;
    }
    // A caller's message has one form; an answer is as it was sampled.
    if (message.role != static_cast<uint8_t>(Role::kAssistant) ||
        tokens.size() < header.size() + end.size() ||
        !StartsWith(tokens, header) ||
        !StartsWith(tokens.last(end.size()), end)) {
      return false;
    }
    const auto body = tokens.subspan(
        header.size(), tokens.size() - header.size() - end.size());
    if (!Reads(tokenizer, body, message.content)) return false;
  }
  return position == record.tokens.size();
}

std::vector<size_t> LastMessages(const SessionRecord& record, uint64_t keep) {
  const auto is = [&](size_t i, Role role) {
    return record.messages[i].role == static_cast<uint8_t>(role);
  };
  const size_t n = record.messages.size();
  std::vector<size_t> kept;
  const size_t first = n > 0 && is(0, Role::kSystem) ? 1 : 0;
  if (first == 1) kept.push_back(0);
  size_t begin = n - std::min<uint64_t>(keep, n - first);
  if (begin > first) {
    while (begin < n && !is(begin, Role::kUser)) ++begin;
  }
  for (size_t i = begin; i < n; ++i) kept.push_back(i);
  return kept;
}

namespace {

// Puts a new system prompt, if any, and then the messages of `kept` in place of
// all messages.
absl::Status Rearrange(const ChatTemplate& chat_template,
                       const std::string& system, std::span<const size_t> kept,
                       SessionRecord* record) {
  std::vector<ChatMessage> messages;
  if (!system.empty()) {
    messages.push_back({.role = Role::kSystem, .content = system});
  }
  const size_t first = messages.size();
  for (const size_t i : kept) {
    messages.push_back(ToChatMessage(record->messages[i]));
  }
  XC_RETURN_IF_ERROR(chat_template.CheckOrder({}, messages));
  std::vector<TokenId> tokens;
  std::vector<SessionMessage> rendered;
  XC_RETURN_IF_ERROR(Render(chat_template, std::span(messages).first(first), 0,
                            &tokens, &rendered));
  for (size_t i = first; i < messages.size(); ++i) {
    const size_t was = kept[i - first];
    SessionMessage message = record->messages[was];
    XC_ASSIGN_OR_RETURN(const std::vector<TokenId> here,
                        chat_template.RenderMessage(messages[i], i));
    XC_ASSIGN_OR_RETURN(const std::vector<TokenId> there,
                        chat_template.RenderMessage(messages[i], was));
    const auto begin = static_cast<uint32_t>(tokens.size());
    if (here == there) {
      tokens.insert(tokens.end(), record->tokens.begin() + message.token_begin,
                    record->tokens.begin() + message.token_end);
    } else {
      tokens.insert(tokens.end(), here.begin(), here.end());
      if (messages[i].role == Role::kAssistant) MarkRetokenized(record);
    }
    message.token_begin = begin;
    message.token_end = static_cast<uint32_t>(tokens.size());
    rendered.push_back(std::move(message));
  }
  const auto same = std::mismatch(tokens.begin(), tokens.end(),
                                  record->tokens.begin(), record->tokens.end())
                        .first -
                    tokens.begin();
  record->page_keys.resize(
      std::min(record->page_keys.size(),
               static_cast<size_t>(same) / static_cast<size_t>(kBlockTokens)));
  record->tokens = std::move(tokens);
  record->messages = std::move(rendered);
  return absl::OkStatus();
}

}  // namespace

void ScalePageBytes(size_t num_pages, SessionRecord* record) {
  if (num_pages == 0) return;
  record->page_bytes =
      record->page_bytes / num_pages * record->page_keys.size();
}

void KeepFirstMessages(size_t num_messages, SessionRecord* record) {
  const size_t num_pages = record->page_keys.size();
  record->messages.resize(num_messages);
  record->tokens.resize(num_messages == 0 ? 0
                                          : record->messages.back().token_end);
  record->page_keys.resize(
      std::min(record->page_keys.size(),
               record->tokens.size() / static_cast<size_t>(kBlockTokens)));
  ScalePageBytes(num_pages, record);
}

absl::Status ReplaceSystemPrompt(const ChatTemplate& chat_template,
                                 const std::string& text,
                                 SessionRecord* record) {
  const auto& had = record->messages;
  const bool has =
      !had.empty() && had.front().role == static_cast<uint8_t>(Role::kSystem);
  if (has ? had.front().content == text : text.empty()) {
    return absl::OkStatus();
  }
  std::vector<size_t> kept(had.size() - (has ? 1 : 0));
  std::iota(kept.begin(), kept.end(), has ? 1 : 0);
  XC_RETURN_IF_ERROR(Rearrange(chat_template, text, kept, record));
  ShiftAnswerNotes((text.empty() ? 0 : 1) - (has ? 1 : 0), record);
  return absl::OkStatus();
}

absl::Status KeepMessages(const ChatTemplate& chat_template,
                          std::span<const size_t> kept, SessionRecord* record) {
  return Rearrange(chat_template, "", kept, record);
}

bool IsRetokenized(const SessionRecord& record) {
  return std::any_of(
      record.settings.begin(), record.settings.end(),
      [](const auto& setting) { return setting.first == kRetokenizedSetting; });
}

void MarkRetokenized(SessionRecord* record) {
  if (IsRetokenized(*record)) return;
  record->settings.emplace_back(kRetokenizedSetting, "yes");
}

}  // namespace xcache
