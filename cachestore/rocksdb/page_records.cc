#include "cachestore/rocksdb/page_records.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"

namespace xcache {
namespace {

constexpr uint32_t kPageMagic = 0x45474158;  // "XAGE"
constexpr uint32_t kPageValueVersion = 1;
constexpr uint32_t kEntryMagic = 0x58444958;  // "XIDX"
constexpr size_t kCrcBytes = 4;

absl::Status Damaged(std::string_view record, const std::string& what) {
  return absl::DataLossError(absl::StrCat(
      absl::string_view(record.data(), record.size()), ": ", what));
}

}  // namespace

std::string_view KeyBytes(const PageKey& key) {
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

std::optional<PageKey> ParseKeyBytes(std::string_view bytes) {
  PageKey key;
  if (bytes.size() != key.size()) return std::nullopt;
  std::copy(bytes.begin(), bytes.end(), key.begin());
  return key;
}

std::string EncodePageTrailer(const PageKey& key, const PageKey& parent,
                              std::string_view page) {
  std::string out;
  FieldWriter w(out);
  w.Hash(parent);
  w.Int(static_cast<uint32_t>(page.size()));
  w.Int(kPageMagic);
  w.Int(kPageValueVersion);
  // The CRC covers the key too: a value that ended up under another one is
  // found out.
  uint32_t crc = Crc32c(KeyBytes(key));
  crc = Crc32c(page, crc);
  w.Int(Crc32c(out, crc));
  return out;
}

absl::StatusOr<PageTrailer> CheckPageValue(const PageKey& key,
                                           std::string_view value) {
  if (value.size() < kPageTrailerBytes) {
    return Damaged("page value",
                   absl::StrCat("expected at least ", kPageTrailerBytes,
                                " bytes, found ", value.size()));
  }
  const std::string_view page =
      value.substr(0, value.size() - kPageTrailerBytes);
  FieldReader r(value.substr(page.size()));
  PageTrailer trailer;
  trailer.parent = r.Hash();
  trailer.page_bytes = r.Int<uint32_t>();
  const auto magic = r.Int<uint32_t>();
  const auto version = r.Int<uint32_t>();
  const auto crc = r.Int<uint32_t>();
  if (magic != kPageMagic || version != kPageValueVersion ||
      trailer.page_bytes != page.size()) {
    return Damaged("page value",
                   absl::StrCat("magic ", absl::Hex(magic), ", version ",
                                version, ", length ", trailer.page_bytes,
                                " in a value of ", value.size(), " bytes"));
  }
  uint32_t actual = Crc32c(KeyBytes(key));
  actual = Crc32c(value.substr(0, value.size() - kCrcBytes), actual);
  if (crc != actual) {
    return Damaged("page value",
                   absl::StrCat("expected CRC-32C ", absl::Hex(crc), ", found ",
                                absl::Hex(actual)));
  }
  return trailer;
}

std::string EncodePageEntry(const PageKey& key, const PageEntry& entry) {
  std::string out;
  FieldWriter w(out);
  w.Int(kEntryMagic);
  w.Hash(entry.parent);
  w.Int(entry.num_bytes);
  w.Int(entry.crc);
  w.Int(entry.put_us);
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
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || r.remaining() != 0 || magic != kEntryMagic ||
      crc != Crc32c(bytes.substr(0, bytes.size() - kCrcBytes),
                    Crc32c(KeyBytes(key)))) {
    return Damaged("page index entry",
                   absl::StrCat("damaged, ", bytes.size(), " bytes"));
  }
  return entry;
}

}  // namespace xcache
