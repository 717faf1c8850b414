// Page formats 1 and 2: see PAGE_FORMAT.md, whose offsets are the constants
// here.
#include "engine/xcache/page.h"

#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/crc32c.h"
#include "engine/xcache/little_endian.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x47504358;  // "XCPG"
constexpr size_t kVersionAt = 4;
constexpr size_t kHeaderBytesAt = 6;
constexpr size_t kFlagsAt = 8;
constexpr size_t kNumTokensAt = 12;
constexpr size_t kCacheFpAt = 16;
constexpr size_t kBlockIndexAt = 48;
constexpr size_t kPayloadBytesAt = 56;
constexpr size_t kTokensAt = 64;
constexpr size_t kHeaderBytes = kTokensAt + 4 * kBlockTokens;
constexpr size_t kCrcBytes = 4;

// Keeps 64 * index far from overflow; no context is that long.
constexpr uint64_t kMaxBlockIndex = std::numeric_limits<int32_t>::max();

template <typename T>
absl::Status WrongField(std::string_view field, T expected, T found) {
  return absl::DataLossError(absl::StrCat("page: ", std::string(field),
                                          ": expected ", expected, ", found ",
                                          found));
}

}  // namespace

size_t PageBytes(size_t payload_bytes) {
  return kHeaderBytes + payload_bytes + kCrcBytes;
}

std::string BeginPage(const Digest& cache_fp, int64_t block_index,
                      std::span<const TokenId> tokens, size_t payload_bytes,
                      uint16_t version) {
  std::string page(PageBytes(payload_bytes), '\0');
  StoreLe32(&page[0], kMagic);
  StoreLe16(&page[kVersionAt], version);
  StoreLe16(&page[kHeaderBytesAt], static_cast<uint16_t>(kHeaderBytes));
  StoreLe32(&page[kFlagsAt], 0);
  StoreLe32(&page[kNumTokensAt], kBlockTokens);
  std::memcpy(&page[kCacheFpAt], cache_fp.data(), cache_fp.size());
  StoreLe64(&page[kBlockIndexAt], static_cast<uint64_t>(block_index));
  StoreLe64(&page[kPayloadBytesAt], payload_bytes);
  for (size_t i = 0; i < kBlockTokens && i < tokens.size(); ++i) {
    StoreLe32(&page[kTokensAt + 4 * i], static_cast<uint32_t>(tokens[i]));
  }
  return page;
}

std::span<uint8_t> PagePayload(std::string& page) {
  return {reinterpret_cast<uint8_t*>(page.data()) + kHeaderBytes,
          page.size() - kHeaderBytes - kCrcBytes};
}

void ShrinkPage(std::string& page, size_t payload_bytes) {
  StoreLe64(&page[kPayloadBytesAt], payload_bytes);
  page.resize(PageBytes(payload_bytes));
  page.shrink_to_fit();
}

void FinishPage(std::string& page) {
  const size_t covered = page.size() - kCrcBytes;
  StoreLe32(&page[covered], Crc32c(page.data(), covered));
}

absl::StatusOr<PageView> ParsePage(std::string_view bytes) {
  if (bytes.size() < PageBytes(0)) {
    return absl::DataLossError(absl::StrCat("page: expected at least ",
                                            PageBytes(0), " bytes, found ",
                                            bytes.size()));
  }
  const char* p = bytes.data();
  if (LoadLe32(p) != kMagic) {
    return WrongField("magic", absl::Hex(kMagic), absl::Hex(LoadLe32(p)));
  }
  const uint16_t version = LoadLe16(p + kVersionAt);
  if (version != kPageFormatVersion && version != kVariablePageFormatVersion) {
    return WrongField("format version", kPageFormatVersion, version);
  }
  if (const size_t n = LoadLe16(p + kHeaderBytesAt); n != kHeaderBytes) {
    return WrongField("header bytes", kHeaderBytes, n);
  }
  if (const uint32_t flags = LoadLe32(p + kFlagsAt); flags != 0) {
    return WrongField("flags", uint32_t{0}, flags);
  }
  if (const uint32_t n = LoadLe32(p + kNumTokensAt); n != kBlockTokens) {
    return WrongField("tokens", uint32_t{kBlockTokens}, n);
  }
  const uint64_t payload_bytes = LoadLe64(p + kPayloadBytesAt);
  if (payload_bytes != bytes.size() - PageBytes(0)) {
    return WrongField("payload bytes", uint64_t{bytes.size() - PageBytes(0)},
                      payload_bytes);
  }
  const uint64_t block_index = LoadLe64(p + kBlockIndexAt);
  if (block_index > kMaxBlockIndex) {
    return absl::DataLossError(absl::StrCat("page: block index: expected at ",
                                            "most ", kMaxBlockIndex, ", found ",
                                            block_index));
  }
  PageView view;
  view.version = version;
  std::memcpy(view.cache_fp.data(), p + kCacheFpAt, view.cache_fp.size());
  view.block_index = static_cast<int64_t>(block_index);
  for (size_t i = 0; i < kBlockTokens; ++i) {
    view.tokens[i] = static_cast<TokenId>(LoadLe32(p + kTokensAt + 4 * i));
    if (view.tokens[i] < 0) {
      return absl::DataLossError(absl::StrCat(
          "page: token ", i, ": expected an id, found ", view.tokens[i]));
    }
  }
  const size_t covered = bytes.size() - kCrcBytes;
  const uint32_t expected = Crc32c(p, covered);
  if (const uint32_t found = LoadLe32(p + covered); found != expected) {
    return WrongField("checksum", absl::Hex(expected), absl::Hex(found));
  }
  view.payload = {reinterpret_cast<const uint8_t*>(p) + kHeaderBytes,
                  static_cast<size_t>(payload_bytes)};
  return view;
}

}  // namespace xcache
