// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above
// U+10FFFF.
#ifndef XCACHE_ENGINE_BASE_UTF8_H_
#define XCACHE_ENGINE_BASE_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace xcache {

// The offset of the first byte that is not part of a whole character; npos
// where there is none.
size_t FindInvalidUtf8(std::string_view text);

inline bool IsUtf8(std::string_view text) {
  return FindInvalidUtf8(text) == std::string_view::npos;
}
// `bytes` with each byte that is part of no character replaced by U+FFFD.
std::string ToUtf8(std::string_view bytes);

// The longest prefix of `bytes` that ends on a character's end: what may be
// sent on while more bytes are to come. Bytes that can never become a character
// count as whole.
size_t CompleteUtf8Prefix(std::string_view bytes);

// The length in bytes of the character at the start of `text`; 1 where there is
// no whole one. REQUIRES: not empty.
size_t Utf8Length(std::string_view text);

// The code point at the start of `text`. REQUIRES: valid UTF-8, not empty.
uint32_t DecodeUtf8(std::string_view text);

void AppendUtf8(uint32_t code_point, std::string* out);

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_UTF8_H_
