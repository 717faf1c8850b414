// The text form of a codec and its options.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/xcache/codec.h"

namespace xcache {
namespace {

bool IsWord(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}

absl::Status BadSpec(std::string_view text, std::string_view why) {
  // A spec comes from a command line or a request: quote only its start.
  constexpr size_t kShown = 80;
  return absl::InvalidArgumentError(
      absl::StrCat("codec spec '", std::string(text.substr(0, kShown)),
                   text.size() > kShown ? "...'" : "'", ": ", std::string(why),
                   "; expected name or name:option=value,option=value"));
}

}  // namespace

absl::StatusOr<CodecSpec> CodecSpec::Parse(std::string_view text) {
  CodecSpec spec;
  const size_t colon = text.find(':');
  spec.name = std::string(text.substr(0, colon));
  if (!IsWord(spec.name)) return BadSpec(text, "the name is not a word");
  if (colon == std::string_view::npos) return spec;

  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const size_t comma = rest.find(',');
    const std::string_view option = rest.substr(0, comma);
    const size_t equals = option.find('=');
    if (equals == std::string_view::npos) {
      return BadSpec(text, "an option has no '='");
    }
    const std::string_view key = option.substr(0, equals);
    const std::string_view value = option.substr(equals + 1);
    if (!IsWord(key) || !IsWord(value)) {
      return BadSpec(text, "an option or its value is not a word");
    }
    spec.options.emplace_back(key, value);
    if (comma == std::string_view::npos) break;
    rest = rest.substr(comma + 1);
  }
  std::sort(spec.options.begin(), spec.options.end());
  for (size_t i = 1; i < spec.options.size(); ++i) {
    if (spec.options[i].first == spec.options[i - 1].first) {
      return BadSpec(text, absl::StrCat("option ", spec.options[i].first,
                                        " is given twice"));
    }
  }
  return spec;
}

std::string CodecSpec::ToString() const {
  std::string text = name;
  char separator = ':';
  for (const auto& [key, value] : options) {
    text += separator;
    absl::StrAppend(&text, key, "=", value);
    separator = ',';
  }
  return text;
}

}  // namespace xcache
