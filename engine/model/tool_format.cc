#include "engine/model/tool_format.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

constexpr std::string_view kHead = "<tool_call>\n{\"name\": \"";
constexpr std::string_view kBeforeArguments = "\", \"arguments\": ";
constexpr std::string_view kSpaces = " \t\r\n";
constexpr std::string_view kToolsHead =
    "# Tools\n\nYou may call one or more functions to assist with the user "
    "query.\n\nYou are provided with function signatures within "
    "<tools></tools> XML tags:\n<tools>";
constexpr std::string_view kToolsTail =
    "\n</tools>\n\nFor each function call, return a json object with function "
    "name and arguments within <tool_call></tool_call> XML tags:\n"
    "<tool_call>\n{\"name\": <function-name>, \"arguments\": "
    "<args-json-object>}\n</tool_call>";
constexpr std::string_view kResultBegin = "<tool_response>\n";
constexpr std::string_view kResultEnd = "\n</tool_response>";

// The most bytes at the end of `text` that a mark may begin with.
size_t BegunAtEnd(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n) {
    if (text.ends_with(mark.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace

std::string SpacedJson(std::string_view text) {
  std::string out;
  bool in_string = false, escaped = false;
  for (const char c : text) {
    if (in_string) {
      out += c;
      if (escaped) {
        escaped = false;
      } else if (c == '\\') {
        escaped = true;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    if (c == ' ' || c == '\n' || c == '\t' || c == '\r') continue;
    in_string = c == '"';
    out += c;
    if (c == ',' || c == ':') out += ' ';
  }
  return out;
}

std::string WithTools(std::string_view system_prompt,
                      std::span<const ToolDef> tools) {
  std::string out(system_prompt);
  if (!out.empty()) out += "\n\n";
  out += kToolsHead;
  for (const ToolDef& tool : tools) absl::StrAppend(&out, "\n", tool.text);
  out += kToolsTail;
  return out;
}

std::string_view WithoutTools(std::string_view system_prompt) {
  if (!system_prompt.ends_with(kToolsTail)) return system_prompt;
  const size_t head = system_prompt.rfind(kToolsHead);
  if (head == system_prompt.npos) return system_prompt;
  std::string_view out = system_prompt.substr(0, head);
  if (out.ends_with("\n\n")) out.remove_suffix(2);
  return out;
}

std::string WithCalls(std::string_view content,
                      std::span<const ToolCall> calls) {
  std::string out(content);
  for (const ToolCall& call : calls) {
    if (!out.empty()) out += kCallSeparator;
    absl::StrAppend(&out, CallBegin(call.name),
                    call.arguments.empty() ? "{}" : call.arguments,
                    std::string(kCallEnd));
  }
  return out;
}

std::string ResultsText(std::span<const std::string> results) {
  std::string out;
  for (const std::string& result : results) {
    absl::StrAppend(&out, out.empty() ? "" : "\n", std::string(kResultBegin),
                    result, std::string(kResultEnd));
  }
  return out;
}

std::vector<std::string> ReadResults(std::string_view text) {
  std::vector<std::string> out;
  while (text.starts_with(kResultBegin)) {
    text.remove_prefix(kResultBegin.size());
    const size_t end = text.find(kResultEnd);
    if (end == text.npos) return {};
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(end + kResultEnd.size());
    if (text.empty()) return out;
    if (!text.starts_with('\n')) return {};
    text.remove_prefix(1);
  }
  return {};
}

std::string CallBegin(std::string_view name) {
  return absl::StrCat(std::string(kHead), std::string(name),
                      std::string(kBeforeArguments));
}

std::vector<ToolCallReader::Part> ToolCallReader::Add(std::string_view text) {
  held_ += text;
  return Read(/*at_end=*/false);
}

std::vector<ToolCallReader::Part> ToolCallReader::Finish() {
  std::vector<Part> out = Read(/*at_end=*/true);
  // Behind calls it is what stands between them.
  if (num_calls_ == 0) Say("", &out);
  return out;
}

std::vector<ToolCallReader::Part> ToolCallReader::Read(bool at_end) {
  std::vector<Part> out;
  bool more = true;
  while (more) {
    switch (state_) {
      case State::kText:
        more = ReadText(at_end, &out);
        break;
      case State::kHead:
        more = ReadHead(at_end, &out);
        break;
      case State::kArguments:
        more = ReadArguments(&out);
        break;
      case State::kTail:
        more = ReadTail(at_end);
        break;
    }
  }
  return out;
}

void ToolCallReader::Say(std::string_view text, std::vector<Part>* out) {
  std::string all = std::exchange(spaces_, "");
  all += text;
  if (all.empty()) return;
  if (!out->empty() && out->back().kind == Part::Kind::kText) {
    out->back().text += all;
  } else {
    out->push_back({Part::Kind::kText, std::move(all)});
  }
}

bool ToolCallReader::ReadText(bool at_end, std::vector<Part>* out) {
  const size_t call = held_.find(kCallTrigger);
  size_t end = call != held_.npos ? call
               : at_end           ? held_.size()
                        : held_.size() - BegunAtEnd(held_, kCallTrigger);
  const std::string_view text = std::string_view(held_).substr(0, end);
  const size_t last = text.find_last_not_of(kSpaces);
  const size_t said = last == text.npos ? 0 : last + 1;
  if (said > 0) Say(text.substr(0, said), out);
  spaces_ += text.substr(said);
  held_.erase(0, end);
  if (call == held_.npos) return false;
  state_ = State::kHead;
  return true;
}

bool ToolCallReader::ReadHead(bool at_end, std::vector<Part>* out) {
  // Its name, if it is a call at all.
  const std::string_view held = held_;
  const std::string_view begun = held.substr(0, kHead.size());
  bool is_call = kHead.starts_with(begun);
  if (is_call && begun.size() == kHead.size()) {
    const size_t quote = held.find('"', kHead.size());
    const size_t name_end = std::min(quote, held.size());
    const size_t name_bytes = name_end - kHead.size();
    const std::string_view after =
        held.substr(name_end, kBeforeArguments.size());
    is_call = name_bytes <= kMaxToolNameBytes &&
              (quote == held.npos ||
               (name_bytes > 0 && kBeforeArguments.starts_with(after)));
    if (is_call && after == kBeforeArguments) {
      spaces_.clear();
      ++num_calls_;
      out->push_back({Part::Kind::kCall,
                      std::string(held.substr(kHead.size(), name_bytes))});
      held_.erase(0, name_end + kBeforeArguments.size());
      state_ = State::kArguments;
      depth_ = 0;
      in_string_ = escaped_ = false;
      return true;
    }
  }
  if (is_call && !at_end) return false;
  // No call: the mark is text.
  Say(held.substr(0, std::min(held.size(), kCallTrigger.size())), out);
  held_.erase(0, kCallTrigger.size());
  state_ = State::kText;
  return true;
}

bool ToolCallReader::ReadArguments(std::vector<Part>* out) {
  // To the end of a JSON value; one that is no object ends before a "}".
  size_t end = 0;
  bool done = false;
  for (; end < held_.size() && !done; ++end) {
    const char c = held_[end];
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
      }
      continue;
    }
    if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      if (depth_ == 0) {
        done = true;
        break;
      }
      done = --depth_ == 0;
    }
  }
  if (end > 0) {
    out->push_back({Part::Kind::kArguments, held_.substr(0, end)});
    held_.erase(0, end);
  }
  if (!done) return false;
  state_ = State::kTail;
  return true;
}

bool ToolCallReader::ReadTail(bool at_end) {
  const std::string_view begun =
      std::string_view(held_).substr(0, kCallEnd.size());
  if (!at_end && begun.size() < kCallEnd.size() &&
      kCallEnd.starts_with(begun)) {
    return false;
  }
  if (kCallEnd.starts_with(begun)) held_.erase(0, kCallEnd.size());
  state_ = State::kText;
  return true;
}

}  // namespace xcache
