// The families of chat templates. Each is made with what its template's text
// says of its variant (TemplateTraits).
#ifndef XCACHE_ENGINE_MODEL_CHAT_FAMILIES_H_
#define XCACHE_ENGINE_MODEL_CHAT_FAMILIES_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/chat_template.h"

namespace xcache {

// What the text of a template (Jinja) says that code then does. The defaults
// are those of a family's first models.
struct TemplateTraits {
  bool bos = false;    // before the first message
  bool trims = false;  // white space around a message's text is cut off
  bool system_allowed = true;
  // Put first where the conversation has no system message (chatml), or at the
  // start of every system message (llama3: dates).
  std::string default_system;
  std::string system_prefix;
  // llama2 and mistral: what stands between a marker and the text.
  std::string after_open = " ";
  std::string before_close = " ";
  std::string after_answer;
};

// The family that a template's text is of; empty where it is none of them.
std::string_view RecogniseFamily(std::string_view text);
// `text` may be empty, or of another family: the family's defaults, then.
TemplateTraits ReadTraits(std::string_view family, std::string_view text);

// INVALID_ARGUMENT: the vocabulary lacks a token that the family needs.
absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateChatMl(
    const Tokenizer& tokenizer, const TemplateTraits& traits);
absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateLlama3(
    const Tokenizer& tokenizer, const TemplateTraits& traits);
absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateGemma(
    const Tokenizer& tokenizer, const TemplateTraits& traits);
// llama2 and mistral: [INST] and [/INST].
absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateInst(
    std::string_view family, const Tokenizer& tokenizer,
    const TemplateTraits& traits);

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_CHAT_FAMILIES_H_
