// Reads a template's variant off its Jinja text, by the phrases that published
// templates are made of. Not a Jinja interpreter.
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/model/chat_families.h"

namespace xcache {
namespace {

bool Contains(std::string_view text, std::string_view phrase) {
  return text.find(phrase) != text.npos;
}

// Without white space, and with one kind of quote: phrases of code then look
// alike wherever they come from.
std::string Squeezed(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '"') {
      out.push_back('\'');
    } else if (c != ' ' && c != '\n' && c != '\t' && c != '\r') {
      out.push_back(c);
    }
  }
  return out;
}

// The text of a string literal from `at` up to `end`, escapes resolved; nothing
// where the literal (in `quote`; 0: plain template text) ends before that.
std::optional<std::string> LiteralUpTo(std::string_view text, size_t at,
                                       std::string_view end, char quote) {
  std::string out;
  while (at < text.size()) {
    if (text.substr(at).starts_with(end)) return out;
    const char c = text[at++];
    if (quote != 0 ? c == quote : c == '{') return std::nullopt;
    if (c == '\\' && quote != 0 && at < text.size()) {
      const char escaped = text[at++];
      out.push_back(escaped == 'n'   ? '\n'
                    : escaped == 't' ? '\t'
                    : escaped == 'r' ? '\r'
                                     : escaped);
    } else {
      out.push_back(c);
    }
  }
  return std::nullopt;
}

// ChatML's default system prompt: a literal that holds the whole message.
std::string ChatMlDefaultSystem(std::string_view text) {
  constexpr std::string_view kOpen = "<|im_start|>system";
  for (size_t at = text.find(kOpen); at != text.npos;
       at = text.find(kOpen, at + 1)) {
    const char before = at > 0 ? text[at - 1] : '\0';
    const char quote = before == '\'' || before == '"' ? before : '\0';
    const std::optional<std::string> body =
        LiteralUpTo(text, at + kOpen.size(), "<|im_end|>", quote);
    if (body && body->size() > 1 && body->front() == '\n') {
      return body->substr(1);
    }
  }
  return "";
}

// Llama 3.1 and later say when they are; of today's date they take the fixed
// one that stands where no clock is given.
std::string Llama3SystemPrefix(std::string_view text) {
  constexpr std::string_view kCutoff = "Cutting Knowledge Date: ";
  const size_t cutoff = text.find(kCutoff);
  if (cutoff == text.npos) return "";
  const std::string_view rest = text.substr(cutoff);
  const std::string knowledge(rest.substr(0, rest.find_first_of("\\\n\"'")));
  std::string date = "26 Jul 2024";
  constexpr std::string_view kDate = "date_string = \"";
  if (const size_t at = text.find(kDate); at != text.npos) {
    const std::string_view value = text.substr(at + kDate.size());
    date = std::string(value.substr(0, value.find('"')));
  }
  return absl::StrCat(knowledge, "\nToday Date: ", date, "\n\n");
}

}  // namespace

std::string_view RecogniseFamily(std::string_view text) {
  const auto has = [text](std::string_view phrase) {
    return Contains(text, phrase);
  };
  if (has("<|im_start|>") && has("<|im_end|>")) {
    return has("<|im_sep|>") ? "" : "chatml";
  }
  if (has("<|start_header_id|>") && has("<|eot_id|>")) return "llama3";
  if (has("<start_of_turn>") && has("<end_of_turn>")) return "gemma";
  // Later Mistral models have markers of their own for the system prompt.
  if (has("[INST]") && has("[SYSTEM_PROMPT]")) return "";
  if (has("[INST]") && has("<<SYS>>")) return "llama2";
  if (has("[INST]")) return "mistral";
  return "";
}

TemplateTraits ReadTraits(std::string_view family, std::string_view text) {
  TemplateTraits t;
  const bool known = RecogniseFamily(text) == family;
  const std::string code = known ? Squeezed(text) : "";
  const auto says = [&code](std::string_view phrase) {
    return Contains(code, phrase);
  };
  const bool trims_message =
      says("message['content']|trim") || says("message['content'].strip()") ||
      says("message.content|trim") || says("message.content.strip()");
  const bool trims = trims_message || says("content.strip()");
  if (family == "chatml") {
    t.bos = says("bos_token");
    t.trims = trims_message;
    if (known) t.default_system = ChatMlDefaultSystem(text);
  } else if (family == "llama3") {
    t.bos = true;
    t.trims = !known || trims;
    if (known) t.system_prefix = Llama3SystemPrefix(text);
  } else if (family == "gemma") {
    t.bos = true;
    t.trims = !known || trims;
    t.system_allowed = !known || !says("Systemrolenotsupported");
  } else if (family == "llama2") {
    t.bos = true;
    t.trims = !known || trims;
    t.after_answer = std::string(1, ' ');
  } else if (family == "mistral") {
    t.bos = true;
    t.trims = trims;
    // Seen in the text as it is: the spaces matter.
    const auto spaced = [text](const char* quote) {
      return Contains(text, absl::StrCat("[INST] ", quote)) ||
             Contains(text, absl::StrCat(" [/INST]", quote));
    };
    if (known && !spaced("'") && !spaced("\"")) {
      t.after_open.clear();
      t.before_close.clear();
    }
  }
  return t;
}

}  // namespace xcache
