#include "cachestore/rocksdb/store_records.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"

namespace xcache {
namespace {

constexpr uint32_t kPageMagic = 0x45474158;     // "XAGE"
constexpr uint32_t kEntryMagic = 0x58444958;    // "XIDX"
constexpr uint32_t kSummaryMagic = 0x4d555358;  // "XSUM"
constexpr uint16_t kSummaryVersion = 1;
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
  w.Int(kStoreFormatVersion);
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
  if (magic != kPageMagic || version != kStoreFormatVersion ||
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

std::string SessionKey(std::string_view tenant, std::string_view id) {
  std::string key;
  FieldWriter w(key);
  w.Int(static_cast<uint8_t>(tenant.size()));
  w.Raw(tenant);
  w.Raw(id);
  return key;
}

std::optional<SessionName> ParseSessionKey(std::string_view key) {
  FieldReader r(key);
  SessionName name;
  name.tenant = r.Raw(r.Int<uint8_t>());
  name.id = r.Raw(r.remaining());
  if (!r.ok() || name.id.empty() || name.id.size() > 255) return std::nullopt;
  return name;
}

SessionEntry MakeSessionEntry(const SessionRecord& record) {
  SessionEntry entry;
  entry.summary = {.tenant = record.tenant,
                   .id = record.id,
                   .title = record.title,
                   .codec = record.codec,
                   .create_ms = record.create_ms,
                   .update_ms = record.update_ms,
                   .expire_ms = record.expire_ms,
                   .turn = record.turn,
                   .num_tokens = record.tokens.size(),
                   .num_messages = record.messages.size(),
                   .num_pages = record.page_keys.size(),
                   .pinned = record.pinned,
                   .durable = false,
                   .damaged = false,
                   .model_fp = record.model_fp};
  if (!record.page_keys.empty()) entry.last_page = record.page_keys.back();
  return entry;
}

std::string EncodeSessionEntry(const SessionEntry& entry) {
  const SessionSummary& s = entry.summary;
  std::string out;
  FieldWriter w(out);
  w.Int(kSummaryMagic);
  w.Int(kSummaryVersion);
  w.Int(uint16_t{s.pinned});
  w.Bytes(s.title);
  w.Bytes(s.codec);
  w.Int(s.create_ms);
  w.Int(s.update_ms);
  w.Int(s.expire_ms);
  w.Int(s.turn);
  w.Int(s.num_tokens);
  w.Int(s.num_messages);
  w.Int(s.num_pages);
  w.Hash(s.model_fp);
  w.Hash(entry.last_page);
  w.Int(Crc32c(out, Crc32c(SessionKey(s.tenant, s.id))));
  return out;
}

absl::StatusOr<SessionEntry> DecodeSessionEntry(std::string_view key,
                                                std::string_view bytes) {
  const auto name = ParseSessionKey(key);
  if (!name || bytes.size() < 8 + kCrcBytes) {
    return Damaged("session index entry", "too short");
  }
  const std::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  if (FieldReader(bytes.substr(body.size())).Int<uint32_t>() !=
      Crc32c(body, Crc32c(key))) {
    return Damaged("session index entry", "wrong CRC-32C");
  }
  FieldReader r(body);
  if (r.Int<uint32_t>() != kSummaryMagic) {
    return Damaged("session index entry", "wrong magic");
  }
  if (const auto version = r.Int<uint16_t>(); version != kSummaryVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("session index entry of version ", version,
                     ", this program reads version ", kSummaryVersion));
  }
  SessionEntry entry;
  SessionSummary& s = entry.summary;
  const auto flags = r.Int<uint16_t>();
  if (flags > 1) r.Fail();
  s.pinned = flags == 1;
  s.tenant = name->tenant;
  s.id = name->id;
  s.title = r.Bytes();
  s.codec = r.Bytes();
  s.create_ms = r.Int<int64_t>();
  s.update_ms = r.Int<int64_t>();
  s.expire_ms = r.Int<int64_t>();
  s.turn = r.Int<uint64_t>();
  s.num_tokens = r.Int<uint64_t>();
  s.num_messages = r.Int<uint64_t>();
  s.num_pages = r.Int<uint64_t>();
  s.model_fp = r.Hash();
  entry.last_page = r.Hash();
  s.durable = true;
  if (!r.ok() || r.remaining() != 0) {
    return Damaged("session index entry", "fields and length disagree");
  }
  return entry;
}

}  // namespace xcache
