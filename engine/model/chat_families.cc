#include "engine/model/chat_families.h"

#include <array>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"

namespace xcache {
namespace {

using Tokens = std::vector<TokenId>;

// What Python's str.strip cuts off, which Jinja's trim is.
bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 ||
         c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

std::string_view TrimRight(std::string_view text) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xc0) == 0x80) {
      --start;
    }
    if (!IsSpace(DecodeUtf8(text.substr(start)))) break;
    text = text.substr(0, start);
  }
  return text;
}

std::string_view Trim(std::string_view text) {
  text = TrimRight(text);
  while (!text.empty() && IsSpace(DecodeUtf8(text))) {
    text.remove_prefix(Utf8Length(text));
  }
  return text;
}

// Puts special tokens and text together. Neighbouring texts are encoded as one,
// as they are in a template's output.
class Rendering {
 public:
  // `continued`: text comes before the first of it.
  explicit Rendering(const Tokenizer& tokenizer, bool continued = false)
      : tokenizer_(tokenizer), continued_(continued) {}

  Rendering& Special(TokenId id) {
    Flush();
    tokens_.push_back(id);
    continued_ = false;
    return *this;
  }
  Rendering& Text(std::string_view text) {
    text_ += text;
    return *this;
  }
  // Encodes what comes next apart from what was before.
  Rendering& Break() {
    Flush();
    return *this;
  }
  absl::StatusOr<Tokens> Finish() {
    Flush();
    if (!status_.ok()) return status_;
    return std::move(tokens_);
  }

 private:
  void Flush() {
    if (text_.empty()) return;
    const auto ids = continued_ ? tokenizer_.EncodeContinued(text_)
                                : tokenizer_.Encode(text_);
    if (ids.ok()) {
      tokens_.insert(tokens_.end(), ids->begin(), ids->end());
    } else {
      status_.Update(ids.status());
    }
    text_.clear();
    continued_ = true;
  }

  const Tokenizer& tokenizer_;
  bool continued_;
  std::string text_;
  Tokens tokens_;
  absl::Status status_;
};

class FamilyTemplate : public ChatTemplate {
 public:
  std::string_view family() const override { return family_; }
  std::string_view default_system() const override {
    return traits_.default_system;
  }
  bool takes_system() const override { return traits_.system_allowed; }
  Tokens AssistantHeader() const override { return assistant_header_; }
  Tokens AssistantEnd(bool ended) const override {
    return {assistant_end_.begin() + (ended ? 1 : 0), assistant_end_.end()};
  }

  absl::StatusOr<Tokens> RenderMessage(const ChatMessage& message,
                                       size_t index) const override {
    XC_RETURN_IF_ERROR(CheckPlace(message.role, index));
    if (const size_t bad = FindInvalidUtf8(message.content);
        bad != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", index,
                       ": expected UTF-8, found an invalid byte at "
                       "offset ",
                       bad));
    }
    return Render(message, index);
  }

  absl::Status CheckOrder(const std::vector<Role>& history,
                          const std::vector<ChatMessage>& next) const override {
    std::vector<Role> roles = history;
    for (const ChatMessage& message : next) roles.push_back(message.role);
    const size_t first =
        !roles.empty() && roles.front() == Role::kSystem ? 1 : 0;
    for (size_t i = 0; i < roles.size(); ++i) {
      XC_RETURN_IF_ERROR(CheckPlace(roles[i], i));
      if (!alternates_ || i < first) continue;
      const Role expected =
          (i - first) % 2 == 0 ? Role::kUser : Role::kAssistant;
      if (roles[i] != expected) {
        return absl::InvalidArgumentError(absl::StrCat(
            "message ", i, ": expected role ", Name(expected),
            " (the model's template has user and assistant in turn), found ",
            Name(roles[i])));
      }
    }
    return absl::OkStatus();
  }

 protected:
  FamilyTemplate(std::string_view family, bool alternates,
                 const Tokenizer& tokenizer, const TemplateTraits& traits)
      : tokenizer_(tokenizer),
        traits_(traits),
        family_(family),
        alternates_(alternates) {}

  virtual absl::StatusOr<Tokens> Render(const ChatMessage& message,
                                        size_t index) const = 0;

  absl::Status Need(std::string_view spelling, TokenId* id) const {
    *id = tokenizer_.SpecialId(spelling);
    if (*id >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("chat template ", family_, ": expected a special token ",
                     std::string(spelling), ", the vocabulary has none"));
  }
  absl::Status NeedBosAndEos() const {
    if (tokenizer_.bos() >= 0 && tokenizer_.eos() >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("chat template ", family_,
                     ": expected BOS and EOS, the vocabulary has not both"));
  }
  static std::string Name(Role role) { return std::string(RoleName(role)); }
  std::string_view Content(const ChatMessage& message) const {
    return traits_.trims ? Trim(message.content) : message.content;
  }
  // BOS before the first message, where the template has it.
  void Begin(size_t index, Rendering* rendering) const {
    if (index == 0 && traits_.bos && tokenizer_.bos() >= 0) {
      rendering->Special(tokenizer_.bos());
    }
  }

  const Tokenizer& tokenizer_;
  const TemplateTraits traits_;
  Tokens assistant_header_;
  Tokens assistant_end_;

 private:
  absl::Status CheckPlace(Role role, size_t index) const {
    if (role == Role::kSystem && !traits_.system_allowed) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", index,
                       ": the model's chat template takes no system message"));
    }
    if (role == Role::kSystem && index != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "message ", index, ": a system message must be the first"));
    }
    if (alternates_ && role == Role::kAssistant && index == 0) {
      return absl::InvalidArgumentError(
          "message 0: expected role user or system, found assistant");
    }
    return absl::OkStatus();
  }

  const std::string family_;
  const bool alternates_;
};

// <open> role <close> text <end>: ChatML, Llama 3, Gemma.
class MarkerTemplate : public FamilyTemplate {
 public:
  struct Markers {
    std::string_view open = {};
    std::string_view end = {};
    std::string_view header_end = {};  // a token after the role; may be empty
    std::string_view after_header = {};
    std::string_view after_end = {};
    std::string_view assistant = "assistant";  // the role's name
    // A system message has no turn of its own: it opens the user's.
    bool system_in_user_turn = false;
  };

  MarkerTemplate(std::string_view family, const Tokenizer& tokenizer,
                 const TemplateTraits& traits, const Markers& markers)
      : FamilyTemplate(family, markers.system_in_user_turn, tokenizer, traits),
        m_(markers) {}

  absl::Status Init() {
    XC_RETURN_IF_ERROR(Need(m_.open, &open_));
    XC_RETURN_IF_ERROR(Need(m_.end, &end_));
    if (!m_.header_end.empty()) {
      XC_RETURN_IF_ERROR(Need(m_.header_end, &header_end_));
    }
    Rendering header(tokenizer_);
    Header(Role::kAssistant, &header);
    XC_ASSIGN_OR_RETURN(assistant_header_, header.Finish());
    Rendering end(tokenizer_);
    end.Special(end_).Text(m_.after_end);
    XC_ASSIGN_OR_RETURN(assistant_end_, end.Finish());
    return absl::OkStatus();
  }

 protected:
  absl::StatusOr<Tokens> Render(const ChatMessage& message,
                                size_t index) const override {
    const bool system = message.role == Role::kSystem;
    // Roles alternate here, so a user in second place follows a system message.
    const bool turn_is_open =
        m_.system_in_user_turn && message.role == Role::kUser && index == 1;
    Rendering r(tokenizer_, turn_is_open);
    Begin(index, &r);
    if (index == 0 && !system) DefaultSystem(&r);
    if (system && m_.system_in_user_turn) {
      Header(Role::kUser, &r);
      r.Text(message.content).Text("\n\n");
      return r.Finish();
    }
    if (!turn_is_open) Header(message.role, &r);
    // An answer is encoded apart from its header, as it is when it is written.
    if (message.role == Role::kAssistant) r.Break();
    if (system) r.Text(traits_.system_prefix);
    r.Text(Content(message)).Special(end_).Text(m_.after_end);
    return r.Finish();
  }

 private:
  void Header(Role role, Rendering* r) const {
    r->Special(open_);
    r->Text(role == Role::kAssistant ? m_.assistant : RoleName(role));
    if (header_end_ >= 0) r->Special(header_end_);
    r->Text(m_.after_header);
  }
  void DefaultSystem(Rendering* r) const {
    if (traits_.default_system.empty() && traits_.system_prefix.empty()) return;
    Header(Role::kSystem, r);
    r->Text(traits_.system_prefix).Text(traits_.default_system);
    r->Special(end_).Text(m_.after_end);
  }

  const Markers m_;
  TokenId open_ = -1, end_ = -1, header_end_ = -1;
};

absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateMarker(
    std::string_view family, const Tokenizer& tokenizer,
    const TemplateTraits& traits, const MarkerTemplate::Markers& markers) {
  auto made =
      std::make_unique<MarkerTemplate>(family, tokenizer, traits, markers);
  XC_RETURN_IF_ERROR(made->Init());
  return made;
}

// <bos>[INST] text [/INST] answer <eos>: Llama 2 and Mistral. The markers are
// plain text in Llama 2 and the first Mistral models, special tokens later.
class InstTemplate : public FamilyTemplate {
 public:
  InstTemplate(std::string_view family, const Tokenizer& tokenizer,
               const TemplateTraits& traits)
      : FamilyTemplate(family, /*alternates=*/true, tokenizer, traits),
        llama2_(family == "llama2") {}

  absl::Status Init() {
    XC_RETURN_IF_ERROR(NeedBosAndEos());
    open_ = tokenizer_.SpecialId("[INST]");
    close_ = tokenizer_.SpecialId("[/INST]");
    assistant_end_ = {tokenizer_.eos()};
    return absl::OkStatus();
  }

 protected:
  absl::StatusOr<Tokens> Render(const ChatMessage& message,
                                size_t index) const override {
    if (message.role == Role::kAssistant) {
      // Encoded as text of its own, whose first token has the space that the
      // model writes after [/INST].
      Rendering r(tokenizer_);
      return r.Text(Content(message))
          .Text(traits_.after_answer)
          .Special(tokenizer_.eos())
          .Finish();
    }
    if (message.role == Role::kSystem) {
      Rendering r(tokenizer_);
      Open(index, &r);
      if (llama2_) {
        r.Text("<<SYS>>\n").Text(message.content).Text("\n<</SYS>>\n\n");
      } else {
        r.Text(message.content).Text("\n\n");
      }
      return r.Finish();
    }
    // Roles alternate, so a user in second place follows a system message.
    const bool turn_is_open = index == 1;
    Rendering r(tokenizer_, turn_is_open);
    if (turn_is_open) {
      // Templates trim system prompt and text together: at the end, here.
      r.Text(traits_.trims ? TrimRight(message.content) : message.content);
    } else {
      Open(index, &r);
      r.Text(Content(message));
    }
    if (close_ >= 0) {
      r.Special(close_);
    } else {
      r.Text(traits_.before_close).Text("[/INST]");
    }
    return r.Finish();
  }

 private:
  void Open(size_t index, Rendering* r) const {
    // Llama 2 begins every turn with BOS.
    if (llama2_ || index == 0) r->Special(tokenizer_.bos());
    if (open_ >= 0) {
      r->Special(open_);
    } else {
      r->Text("[INST]").Text(traits_.after_open);
    }
  }

  const bool llama2_;
  TokenId open_ = -1, close_ = -1;  // -1: plain text
};

}  // namespace

absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateChatMl(
    const Tokenizer& tokenizer, const TemplateTraits& traits) {
  return CreateMarker("chatml", tokenizer, traits,
                      {.open = "<|im_start|>",
                       .end = "<|im_end|>",
                       .after_header = "\n",
                       .after_end = "\n"});
}

absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateLlama3(
    const Tokenizer& tokenizer, const TemplateTraits& traits) {
  return CreateMarker("llama3", tokenizer, traits,
                      {.open = "<|start_header_id|>",
                       .end = "<|eot_id|>",
                       .header_end = "<|end_header_id|>",
                       .after_header = "\n\n"});
}

absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateGemma(
    const Tokenizer& tokenizer, const TemplateTraits& traits) {
  return CreateMarker("gemma", tokenizer, traits,
                      {.open = "<start_of_turn>",
                       .end = "<end_of_turn>",
                       .after_header = "\n",
                       .after_end = "\n",
                       .assistant = "model",
                       .system_in_user_turn = true});
}

absl::StatusOr<std::unique_ptr<const ChatTemplate>> CreateInst(
    std::string_view family, const Tokenizer& tokenizer,
    const TemplateTraits& traits) {
  auto made = std::make_unique<InstTemplate>(family, tokenizer, traits);
  XC_RETURN_IF_ERROR(made->Init());
  return made;
}

}  // namespace xcache
