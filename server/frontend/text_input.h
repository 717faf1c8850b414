// Texts that requests bring: how large they may be, and their tokens.
#ifndef XCACHE_SERVER_FRONTEND_TEXT_INPUT_H_
#define XCACHE_SERVER_FRONTEND_TEXT_INPUT_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"

namespace xcache {

// What one request may hold. As a whole it is bounded by RequestMemory's limit
// on messages.
inline constexpr size_t kMaxTextBytes = size_t{4} << 20;  // one text
inline constexpr int kMaxMessages = 4096;
inline constexpr int kMaxTokenIds = 1 << 20;

// INVALID_ARGUMENT: too long, or no UTF-8.
absl::Status CheckText(std::string_view field, const std::string& text,
                       size_t max_bytes);

// The ids of a text, after BOS if `add_bos`. INVALID_ARGUMENT as CheckText.
absl::StatusOr<std::vector<TokenId>> EncodeText(std::string_view field,
                                                const std::string& text,
                                                bool parse_special,
                                                bool add_bos,
                                                const Tokenizer& tokenizer);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_TEXT_INPUT_H_
