// The bytes of one sealed block: header, token ids, codec payload, checksum.
// Layout and offsets: PAGE_FORMAT.md. Knows nothing of what the payload means.
#ifndef XCACHE_ENGINE_XCACHE_PAGE_H_
#define XCACHE_ENGINE_XCACHE_PAGE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/types.h"

namespace xcache {

// Of codecs whose pages are all of one size, and of those whose pages differ.
inline constexpr uint16_t kPageFormatVersion = 1;
inline constexpr uint16_t kVariablePageFormatVersion = 2;

// A parsed page; views into the bytes it was parsed from.
struct PageView {
  uint16_t version = 0;
  Digest cache_fp{};
  int64_t block_index = 0;
  TokenId tokens[kBlockTokens] = {};
  std::span<const uint8_t> payload;
};

// Size of a page with a payload of that many bytes.
size_t PageBytes(size_t payload_bytes);

// A page with header and tokens filled in and a zero payload, and its payload
// to be written; FinishPage then computes the checksum.
std::string BeginPage(const Digest& cache_fp, int64_t block_index,
                      std::span<const TokenId> tokens, size_t payload_bytes,
                      uint16_t version = kPageFormatVersion);
std::span<uint8_t> PagePayload(std::string& page);
// Keeps the first `payload_bytes` of the payload. Before FinishPage.
void ShrinkPage(std::string& page, size_t payload_bytes);
void FinishPage(std::string& page);

// Checks magic, version, lengths, token ids and checksum. DATA_LOSS says which
// field, what was expected and what was found.
absl::StatusOr<PageView> ParsePage(std::string_view bytes);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_PAGE_H_
