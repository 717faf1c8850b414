// Words that every part of the engine shares.
#ifndef XCACHE_ENGINE_TYPES_H_
#define XCACHE_ENGINE_TYPES_H_

#include <cstdint>
#include <functional>
#include <string_view>

namespace xcache {

using TokenId = int32_t;

// Tokens in a block, and how many of a sequence's first tokens are sinks.
inline constexpr int kBlockTokens = 64;
inline constexpr int kSinkTokens = 4;

// Called now and then during long work: what is being done, and how far it is,
// 0 to 1. May be empty.
using ProgressFn = std::function<void(std::string_view what, double fraction)>;

}  // namespace xcache

#endif  // XCACHE_ENGINE_TYPES_H_
