#include "cachestore/sessions/session_entry.h"

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x4d555358;  // "XSUM"
constexpr uint16_t kVersion = 2;
constexpr size_t kCrcBytes = 4;

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(absl::StrCat("session index entry: ", what));
}

}  // namespace

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

SessionSummary SummaryOf(const SessionRecord& record) {
  return {.tenant = record.tenant,
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
          .page_bytes = record.page_bytes,
          .pinned = record.pinned,
          .durable = false,
          .damaged = false,
          .model_fp = record.model_fp};
}

SessionEntry MakeSessionEntry(const SessionRecord& record) {
  SessionEntry entry = {.summary = SummaryOf(record)};
  if (!record.page_keys.empty()) entry.last_page = record.page_keys.back();
  return entry;
}

std::string EncodeSessionEntry(const SessionEntry& entry) {
  const SessionSummary& s = entry.summary;
  std::string out;
  FieldWriter w(out);
  w.Int(kMagic);
  w.Int(kVersion);
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
  w.Int(s.page_bytes);
  w.Hash(s.model_fp);
  w.Hash(entry.last_page);
  w.Int(Crc32c(out, Crc32c(SessionKey(s.tenant, s.id))));
  return out;
}

absl::StatusOr<SessionEntry> DecodeSessionEntry(std::string_view key,
                                                std::string_view bytes) {
  const auto name = ParseSessionKey(key);
  if (!name || bytes.size() < 8 + kCrcBytes) {
    return Damaged("too short");
  }
  const std::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  if (FieldReader(bytes.substr(body.size())).Int<uint32_t>() !=
      Crc32c(body, Crc32c(key))) {
    return Damaged("wrong CRC-32C");
  }
  FieldReader r(body);
  if (r.Int<uint32_t>() != kMagic) {
    return Damaged("wrong magic");
  }
  if (const auto version = r.Int<uint16_t>(); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("session index entry of version ", version,
                     ", this program reads version ", kVersion));
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
  s.page_bytes = r.Int<uint64_t>();
  s.model_fp = r.Hash();
  entry.last_page = r.Hash();
  s.durable = true;
  if (!r.ok() || r.remaining() != 0) {
    return Damaged("fields and length disagree");
  }
  return entry;
}

}  // namespace xcache
