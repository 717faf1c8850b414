// Stop strings and UTF-8 boundaries of an answer.
#include "server/core/scheduler/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "engine/base/utf8.h"

namespace xcache {

StopMatcher::StopMatcher(std::vector<std::string> stops)
    : stops_(std::move(stops)) {}

bool StopMatcher::Append(std::string_view bytes, std::string* text) {
  const size_t old_size = held_.size();
  held_ += bytes;
  // Every prefix that was looked at before held no stop string, so a first one
  // ends in the new bytes.
  for (size_t end = old_size + 1; end <= held_.size() && !stops_.empty();
       ++end) {
    const std::string_view seen(held_.data(), end);
    const std::string* found = nullptr;
    for (const std::string& stop : stops_) {
      if (seen.ends_with(stop) && (!found || stop.size() > found->size())) {
        found = &stop;
      }
    }
    if (found) {
      stop_ = *found;
      held_.resize(end - stop_.size());
      Send(CompleteUtf8Prefix(held_), text);
      held_.clear();
      return true;
    }
  }
  Send(CompleteUtf8Prefix(
           std::string_view(held_.data(), held_.size() - HeldBack())),
       text);
  return false;
}

void StopMatcher::Finish(std::string* text) {
  Send(CompleteUtf8Prefix(held_), text);
  dropped_bytes_ = held_.size();
  held_.clear();
}

void StopMatcher::Send(size_t num_bytes, std::string* text) {
  *text += ToUtf8(std::string_view(held_.data(), num_bytes));
  held_.erase(0, num_bytes);
  text_bytes_ += num_bytes;
}

// Bytes at the end that may be the beginning of a stop string.
size_t StopMatcher::HeldBack() const {
  size_t held_back = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > held_back;
         --n) {
      if (std::string_view(held_).ends_with(
              std::string_view(stop).substr(0, n))) {
        held_back = n;
        break;
      }
    }
  }
  return held_back;
}

}  // namespace xcache
