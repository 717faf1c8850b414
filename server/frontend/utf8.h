// Checks and repairs UTF-8 (RFC 3629: no surrogates, no overlong forms).
#ifndef XCACHE_SERVER_FRONTEND_UTF8_H_
#define XCACHE_SERVER_FRONTEND_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace xcache {

// The length of the character that `bytes` starts with; 0 where it starts with
// none.
size_t Utf8CharLength(std::string_view bytes);

bool IsUtf8(std::string_view bytes);

// `bytes` with each byte that is part of no character replaced by U+FFFD.
std::string ToUtf8(std::string_view bytes);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_UTF8_H_
