// Abseil's ASCII helpers for std::string_view, which Debian's Abseil is built
// without.
#ifndef XCACHE_ENGINE_BASE_ASCII_H_
#define XCACHE_ENGINE_BASE_ASCII_H_

#include <string_view>

#include "absl/strings/ascii.h"

namespace xcache {

// `text` without the white space at its ends.
inline std::string_view Stripped(std::string_view text) {
  const absl::string_view stripped =
      absl::StripAsciiWhitespace(absl::string_view(text.data(), text.size()));
  return {stripped.data(), stripped.size()};
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_ASCII_H_
