// Renders chat messages to token ids, by family of template. Rendering is
// incremental (rule R8): the tokens of a conversation's first n messages are a
// prefix of those of its first n+1, and text of messages never becomes special
// tokens.
#ifndef XCACHE_ENGINE_MODEL_CHAT_TEMPLATE_H_
#define XCACHE_ENGINE_MODEL_CHAT_TEMPLATE_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"

namespace xcache {

enum class Role { kSystem, kUser, kAssistant };
std::string_view RoleName(Role role);

struct ChatMessage {
  Role role = Role::kUser;
  std::string content;
};

// A family's messages are rendered by code, not by the template's Jinja text;
// that text decides between the family's variants (default system prompt, BOS,
// trimming, spaces). Two deviations, both for the sake of rule R8: a system
// prompt stands before the first user message also where a template puts it
// before the last, and a template that prints today's date gets the fixed one
// that it names.
class ChatTemplate {
 public:
  // Recognises the family of the GGUF's template, or takes `family` where it is
  // not empty: "chatml", "llama2", "llama3", "mistral", "gemma". Where neither
  // says one: INVALID_ARGUMENT, naming the families and the flag. The same
  // where the vocabulary lacks the family's special tokens.
  // `tokenizer` must outlive the template.
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(
      const GgufFile& gguf, const Tokenizer& tokenizer,
      std::string_view family);
  virtual ~ChatTemplate() = default;

  virtual std::string_view family() const = 0;
  // The system prompt of conversations that have none; may be empty.
  virtual std::string_view default_system() const { return ""; }
  virtual bool takes_system() const { return true; }

  // Tokens of `message`, the `index`-th of its conversation (0 first): its
  // header, text and end, and before the first one BOS and the model's default
  // system prompt where the template has them. An assistant's message is
  // rendered as if the model had said it, AssistantHeader() included.
  // INVALID_ARGUMENT: a role out of place (system not first, say), or text that
  // is not UTF-8.
  virtual absl::StatusOr<std::vector<TokenId>> RenderMessage(
      const ChatMessage& message, size_t index) const = 0;
  // What comes before the answer that the model is to write. May be empty.
  virtual std::vector<TokenId> AssistantHeader() const = 0;
  // What follows an answer's text: the end token, first, and what comes after
  // it. `ended` says whether the model itself wrote that token, which is then
  // not repeated.
  virtual std::vector<TokenId> AssistantEnd(bool ended) const = 0;
  // Whether roles may follow each other in this order; `history` may be empty.
  virtual absl::Status CheckOrder(
      const std::vector<Role>& history,
      const std::vector<ChatMessage>& next) const = 0;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_CHAT_TEMPLATE_H_
