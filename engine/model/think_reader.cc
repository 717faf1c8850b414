#include "engine/model/think_reader.h"

#include <algorithm>

namespace xcache {
namespace {

constexpr std::string_view kBegin = "<think>";
constexpr std::string_view kEnd = "</think>";
constexpr std::string_view kSpaces = " \t\r\n";

// Where what may still be the mark, or the white space before it, begins.
size_t SettledEnd(std::string_view text) {
  size_t begun = std::min(text.size(), kEnd.size() - 1);
  while (!text.ends_with(kEnd.substr(0, begun))) --begun;
  const size_t last =
      text.substr(0, text.size() - begun).find_last_not_of(kSpaces);
  return last == text.npos ? 0 : last + 1;
}

}  // namespace

ThinkReader::Part ThinkReader::Add(std::string_view text) {
  held_ += text;
  Part out;
  while (Read(/*at_end=*/false, &out)) {
  }
  return out;
}

ThinkReader::Part ThinkReader::Finish() {
  Part out;
  while (Read(/*at_end=*/true, &out)) {
  }
  return out;
}

bool ThinkReader::Read(bool at_end, Part* out) {
  const std::string_view held = held_;
  const size_t first = std::min(held.find_first_not_of(kSpaces), held.size());
  switch (state_) {
    case State::kStart: {
      const std::string_view mark = held.substr(first, kBegin.size());
      if (!kBegin.starts_with(mark) || (at_end && mark != kBegin)) {
        state_ = State::kText;
        return true;
      }
      if (mark != kBegin) return false;
      held_.erase(0, first + kBegin.size());
      state_ = State::kThought;
      return true;
    }
    case State::kThought: {
      if (!said_) {
        held_.erase(0, first);
        said_ = !held_.empty();
      }
      const std::string_view rest = held_;
      const size_t mark = rest.find(kEnd);
      const std::string_view thought = rest.substr(0, mark);
      if (mark == rest.npos) {
        const size_t end = at_end ? rest.size() : SettledEnd(rest);
        out->thought += rest.substr(0, end);
        held_.erase(0, end);
        return false;
      }
      const size_t last = thought.find_last_not_of(kSpaces);
      out->thought += thought.substr(0, last == thought.npos ? 0 : last + 1);
      held_.erase(0, mark + kEnd.size());
      state_ = State::kBetween;
      return true;
    }
    case State::kBetween:
      held_.erase(0, first);
      if (held_.empty()) return false;
      state_ = State::kText;
      return true;
    case State::kText:
      out->text += held_;
      held_.clear();
      return false;
  }
  return false;
}

}  // namespace xcache
