#include "cachestore/rocksdb/page_records.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x58444958;  // "XIDX"

}  // namespace

std::string_view KeyBytes(const PageKey& key) {
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

std::optional<PageKey> ParseKeyBytes(std::string_view bytes) {
  if (bytes.size() != sizeof(PageKey)) return std::nullopt;
  return FieldReader(bytes).Hash();
}

std::string EncodePageEntry(const PageKey& key, const PageEntry& entry) {
  std::string out;
  FieldWriter w(out);
  w.Int(kMagic);
  w.Hash(entry.parent);
  w.Int(entry.num_bytes);
  w.Int(entry.crc);
  w.Int(entry.put_us);
  // The CRC covers the key too: what ended up under another one is found out.
  w.Int(Crc32c(out, Crc32c(KeyBytes(key))));
  return out;
}

absl::StatusOr<PageEntry> DecodePageEntry(const PageKey& key,
                                          std::string_view bytes) {
  FieldReader r(bytes);
  const auto magic = r.Int<uint32_t>();
  PageEntry entry;
  entry.parent = r.Hash();
  entry.num_bytes = r.Int<uint32_t>();
  entry.crc = r.Int<uint32_t>();
  entry.put_us = r.Int<uint64_t>();
  const std::string_view body = bytes.substr(0, r.offset());
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || r.remaining() != 0 || magic != kMagic ||
      crc != Crc32c(body, Crc32c(KeyBytes(key)))) {
    return absl::DataLossError(
        absl::StrCat("page entry: damaged, ", bytes.size(), " bytes"));
  }
  return entry;
}

absl::StatusOr<PageEntry> CheckPageValue(const PageKey& key,
                                         std::string_view value) {
  const std::string_view page =
      value.substr(0, value.size() - std::min(value.size(), kPageEntryBytes));
  XC_ASSIGN_OR_RETURN(const PageEntry entry,
                      DecodePageEntry(key, value.substr(page.size())));
  if (const uint32_t crc = Crc32c(page);
      entry.num_bytes != page.size() || entry.crc != crc) {
    return absl::DataLossError(absl::StrCat(
        "page value: expected ", entry.num_bytes, " bytes of CRC-32C ",
        absl::Hex(entry.crc), ", found ", page.size(), " of ", absl::Hex(crc)));
  }
  return entry;
}

}  // namespace xcache
