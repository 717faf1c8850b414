// Stop strings and UTF-8 boundaries of an answer.
#include "server/core/stop_matcher.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/model/tokenizer.h"

namespace xcache {
namespace {

// Length of the well-formed character at `bytes`, 0 where there is none.
size_t CharacterLength(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return 1;
  size_t length = 0;
  uint8_t low = 0x80, high = 0xBF;  // of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  if (bytes.size() < length || at(1) < low || at(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((at(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t length = CharacterLength(bytes);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      bytes.remove_prefix(1);
    } else {
      out += bytes.substr(0, length);
      bytes.remove_prefix(length);
    }
  }
  return out;
}

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
  *text += ReplaceInvalidUtf8(std::string_view(held_.data(), num_bytes));
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
