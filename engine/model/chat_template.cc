#include "engine/model/chat_template.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "engine/model/chat_families.h"

namespace xcache {
namespace {

constexpr char kFamilies[] = "chatml, llama2, llama3, mistral, gemma";

}  // namespace

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
  }
  return "";
}

absl::StatusOr<std::unique_ptr<const ChatTemplate>> ChatTemplate::Create(
    const GgufFile& gguf, const Tokenizer& tokenizer, std::string_view family) {
  std::string text;
  if (gguf.Has("tokenizer.chat_template")) {
    XC_ASSIGN_OR_RETURN(text, gguf.GetString("tokenizer.chat_template"));
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != text.npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(gguf.path(),
                     ": tokenizer.chat_template: expected UTF-8, found an "
                     "invalid byte at offset ",
                     bad));
  }
  const std::string_view chosen =
      family.empty() ? RecogniseFamily(text) : family;
  const TemplateTraits traits = ReadTraits(chosen, text);
  if (chosen == "chatml") return CreateChatMl(tokenizer, traits);
  if (chosen == "llama3") return CreateLlama3(tokenizer, traits);
  if (chosen == "gemma") return CreateGemma(tokenizer, traits);
  if (chosen == "llama2" || chosen == "mistral") {
    return CreateInst(chosen, tokenizer, traits);
  }
  if (!family.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template: expected one of ", kFamilies, ", found ",
                     absl::CHexEscape(std::string(family))));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      gguf.path(), ": chat template: ",
      text.empty() ? "the model has none" : "that of the model is not known",
      "; name its family with --chat-template, one of ", kFamilies));
}

}  // namespace xcache
