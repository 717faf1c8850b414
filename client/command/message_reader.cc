#include "client/command/message_reader.h"

#include <string_view>

namespace xcache::command {
namespace {

constexpr std::string_view kQuotes = "\"\"\"";

// What stands between the quotes; a line end next to them is theirs.
std::string Unquoted(std::string_view text, bool closed) {
  text.remove_prefix(kQuotes.size());
  if (closed) text.remove_suffix(kQuotes.size());
  if (text.starts_with('\n')) text.remove_prefix(1);
  if (text.ends_with('\n')) text.remove_suffix(1);
  return std::string(text);
}

}  // namespace

LineEditor::Result ReadMessage(LineEditor& editor, const std::string& first,
                               const std::string& next, TypedMessage* out) {
  *out = {};
  std::string text;
  LineEditor::Result result = editor.Read(first, &text);
  if (result != LineEditor::Result::kLine) return result;
  const bool quoted = text.starts_with(kQuotes);
  const auto closed = [&] {
    return text.size() >= 2 * kQuotes.size() && text.ends_with(kQuotes);
  };
  while (quoted ? !closed() : text.ends_with('\\')) {
    if (!quoted) text.pop_back();
    std::string line;
    result = editor.Read(next, &line);
    if (result == LineEditor::Result::kInterrupted) return result;
    if (result == LineEditor::Result::kEnd) break;
    text += '\n';
    text += line;
    out->plain = false;
  }
  out->plain &= !quoted && text.find('\n') == std::string::npos;
  out->text = quoted ? Unquoted(text, closed()) : text;
  return LineEditor::Result::kLine;
}

}  // namespace xcache::command
