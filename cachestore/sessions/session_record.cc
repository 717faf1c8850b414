#include "cachestore/sessions/session_record.h"

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x53455358;  // "XSES"
// Magic, version, reserved, length of the record and, from version 2 on, of the
// head; the CRC at the end of each.
constexpr size_t kMaxNameBytes = 255;
constexpr size_t kMaxTitleBytes = 1024;
constexpr uint16_t kPlainVersion = 2;
constexpr size_t kLengthAt = 8;
constexpr size_t kHeaderBytes = 12;
constexpr size_t kCrcBytes = 4;
// The least that a message, and a setting, take.
constexpr size_t kMinMessageBytes = 1 + 4 + 4 + 4;
constexpr size_t kMinSettingBytes = 4 + 4;

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat(
      "session record: ", absl::string_view(what.data(), what.size())));
}

void SetLength(std::string& out, size_t at) {
  std::string length;
  FieldWriter(length).Int(static_cast<uint32_t>(out.size() + kCrcBytes));
  out.replace(at, length.size(), length);
}

// The fields of a head that every version has.
void ReadHead(FieldReader& r, SessionHead* head) {
  head->tenant = r.Bytes();
  head->id = r.Bytes();
  head->title = r.Bytes();
  head->create_ms = r.Int<int64_t>();
  head->update_ms = r.Int<int64_t>();
  head->expire_ms = r.Int<int64_t>();
  head->ttl_ms = r.Int<int64_t>();
  head->codec = r.Bytes();
  head->cache_fp = r.Hash();
  head->model_fp = r.Hash();
  head->numerics_id = r.Bytes();
  head->turn = r.Int<uint64_t>();
  const auto pinned = r.Int<uint8_t>();
  if (pinned > 1) r.Fail();
  head->pinned = pinned == 1;
}

absl::Status CheckKey(const SessionHead& head, std::string_view key) {
  const bool is_its =
      key.empty() || key == SessionKeyBytes(head.tenant, head.id);
  return is_its ? absl::OkStatus() : Damaged("of another session");
}

}  // namespace

bool IsExpired(const SessionHead& session, int64_t now_ms) {
  return !session.pinned && session.expire_ms != 0 &&
         session.expire_ms <= now_ms;
}

SessionSummary SummaryOf(const SessionRecord& record) {
  SessionSummary out;
  static_cast<SessionHead&>(out) = record;
  out.num_tokens = record.tokens.size();
  out.num_messages = record.messages.size();
  out.num_pages = record.page_keys.size();
  if (!record.page_keys.empty()) out.last_page = record.page_keys.back();
  return out;
}

std::string SessionKeyBytes(std::string_view tenant, std::string_view id) {
  std::string key;
  FieldWriter w(key);
  w.Int(static_cast<uint8_t>(tenant.size()));
  w.Raw(tenant);
  w.Raw(id);
  return key;
}

std::optional<SessionSummary> ParseSessionKey(std::string_view key) {
  FieldReader r(key);
  SessionSummary name;
  name.tenant = r.Raw(r.Int<uint8_t>());
  name.id = r.Raw(r.remaining());
  if (!r.ok() || name.id.empty() || name.id.size() > 255) return std::nullopt;
  return name;
}

bool IsSessionName(std::string_view tenant, std::string_view id) {
  return !id.empty() && id.size() <= kMaxNameBytes &&
         tenant.size() <= kMaxNameBytes;
}

absl::Status CheckSessionRecord(const SessionRecord& record) {
  if (!IsSessionName(record.tenant, record.id) ||
      record.title.size() > kMaxTitleBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("session id of ", record.id.size(), " bytes, tenant of ",
                     record.tenant.size(), ", title of ", record.title.size(),
                     "; at most 255, 255 and 1024, and an id of at least 1"));
  }
  for (const SessionMessage& message : record.messages) {
    if (message.token_begin > message.token_end ||
        message.token_end > record.tokens.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a message of tokens ", message.token_begin, " to ",
          message.token_end, " in a session of ", record.tokens.size()));
    }
  }
  return absl::OkStatus();
}

std::string EncodeSessionRecord(const SessionRecord& record) {
  std::string out;
  FieldWriter w(out);
  w.Int(kMagic);
  w.Int(record.version.empty() ? kPlainVersion : kSessionFormatVersion);
  w.Int(uint16_t{0});
  w.Int(uint32_t{0});  // the lengths, known at the ends
  w.Int(uint32_t{0});
  w.Bytes(record.tenant);
  w.Bytes(record.id);
  w.Bytes(record.title);
  w.Int(record.create_ms);
  w.Int(record.update_ms);
  w.Int(record.expire_ms);
  w.Int(record.ttl_ms);
  w.Bytes(record.codec);
  w.Hash(record.cache_fp);
  w.Hash(record.model_fp);
  w.Bytes(record.numerics_id);
  w.Int(record.turn);
  w.Int(uint8_t{record.pinned});
  w.Int(static_cast<uint32_t>(record.tokens.size()));
  w.Int(static_cast<uint32_t>(record.messages.size()));
  w.Int(static_cast<uint32_t>(record.page_keys.size()));
  w.Int(record.page_bytes);
  w.Hash(SummaryOf(record).last_page);
  if (!record.version.empty()) w.Bytes(record.version);
  SetLength(out, kHeaderBytes);
  // Without the length of the whole, which is not known yet.
  w.Int(Crc32c(std::string_view(out).substr(kHeaderBytes)));
  w.Int(static_cast<uint32_t>(record.tokens.size()));
  for (int32_t token : record.tokens) w.Int(token);
  w.Int(static_cast<uint32_t>(record.messages.size()));
  for (const SessionMessage& message : record.messages) {
    w.Int(message.role);
    w.Bytes(message.content);
    w.Int(message.token_begin);
    w.Int(message.token_end);
  }
  w.Int(static_cast<uint32_t>(record.page_keys.size()));
  for (const PageKey& key : record.page_keys) w.Hash(key);
  w.Int(static_cast<uint32_t>(record.settings.size()));
  for (const auto& [name, value] : record.settings) {
    w.Bytes(name);
    w.Bytes(value);
  }
  SetLength(out, kLengthAt);
  w.Int(Crc32c(out));
  return out;
}

absl::StatusOr<SessionRecord> DecodeSessionRecord(std::string_view bytes,
                                                  std::string_view key) {
  if (bytes.size() < kHeaderBytes + kCrcBytes) {
    return Damaged(absl::StrCat("expected at least ", kHeaderBytes + kCrcBytes,
                                " bytes, found ", bytes.size()));
  }
  FieldReader header(bytes);
  if (const auto magic = header.Int<uint32_t>(); magic != kMagic) {
    return Damaged(absl::StrCat("expected magic ", absl::Hex(kMagic),
                                ", found ", absl::Hex(magic)));
  }
  const auto version = header.Int<uint16_t>();
  const auto reserved = header.Int<uint16_t>();
  const auto length = header.Int<uint32_t>();
  if (length != bytes.size()) {
    return Damaged(absl::StrCat("its length says ", length, " bytes, found ",
                                bytes.size()));
  }
  const std::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  const auto crc = FieldReader(bytes.substr(body.size())).Int<uint32_t>();
  if (const uint32_t actual = Crc32c(body); crc != actual) {
    return Damaged(absl::StrCat("expected CRC-32C ", absl::Hex(crc), ", found ",
                                absl::Hex(actual)));
  }
  // What follows was written as it stands; another version is no damage.
  if (version < 1 || version > kSessionFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "session record of format version ", version,
        ", this program reads versions 1 to ", kSessionFormatVersion));
  }
  if (reserved != 0) return Damaged("reserved bits are set");

  FieldReader r(body);
  r.Raw(kHeaderBytes);
  SessionRecord record;
  SessionSummary head;
  if (version == 1) {
    ReadHead(r, &record);
  } else {
    XC_ASSIGN_OR_RETURN(head, DecodeSessionHead(body));
    static_cast<SessionHead&>(record) = head;
    r.Raw(HeadOf(body).size() - r.offset());
  }
  record.tokens.resize(r.Count(4));
  for (int32_t& token : record.tokens) token = r.Int<int32_t>();
  record.messages.resize(r.Count(kMinMessageBytes));
  for (SessionMessage& message : record.messages) {
    message.role = r.Int<uint8_t>();
    message.content = r.Bytes();
    message.token_begin = r.Int<uint32_t>();
    message.token_end = r.Int<uint32_t>();
    if (message.token_begin > message.token_end ||
        message.token_end > record.tokens.size()) {
      r.Fail();
    }
  }
  record.page_keys.resize(r.Count(sizeof(PageKey)));
  for (PageKey& page : record.page_keys) page = r.Hash();
  record.settings.resize(r.Count(kMinSettingBytes));
  for (auto& [name, value] : record.settings) {
    name = r.Bytes();
    value = r.Bytes();
  }
  if (!r.ok()) {
    return Damaged(absl::StrCat("bad field before byte ", r.offset()));
  }
  if (r.remaining() != 0) {
    return Damaged(absl::StrCat(r.remaining(), " bytes too many"));
  }
  if (version >= 2 && head != SummaryOf(record)) {
    return Damaged("its head says something else");
  }
  XC_RETURN_IF_ERROR(CheckKey(record, key));
  return record;
}

std::string_view HeadOf(std::string_view manifest) {
  FieldReader r(manifest);
  r.Raw(kHeaderBytes);
  return manifest.substr(0, r.Int<uint32_t>());
}

absl::StatusOr<SessionSummary> DecodeSessionHead(std::string_view bytes,
                                                 std::string_view key) {
  FieldReader header(bytes);
  const auto magic = header.Int<uint32_t>();
  const auto version = header.Int<uint16_t>();
  if (magic == kMagic &&
      (version < kPlainVersion || version > kSessionFormatVersion)) {
    return absl::FailedPreconditionError(
        absl::StrCat("session record of format version ", version));
  }
  FieldReader r(HeadOf(bytes));
  r.Raw(kHeaderBytes + 4);
  SessionSummary head;
  ReadHead(r, &head);
  head.num_tokens = r.Int<uint32_t>();
  head.num_messages = r.Int<uint32_t>();
  head.num_pages = r.Int<uint32_t>();
  head.page_bytes = r.Int<uint64_t>();
  head.last_page = r.Hash();
  if (version > kPlainVersion) {
    head.version = r.Bytes();
    if (head.version.empty()) r.Fail();  // that would be of format 2
  }
  const std::string_view body = bytes.substr(0, r.offset());
  const auto crc = r.Int<uint32_t>();
  if (!r.ok() || r.remaining() != 0 || magic != kMagic ||
      crc != Crc32c(body.substr(kHeaderBytes))) {
    return Damaged("its head is damaged");
  }
  XC_RETURN_IF_ERROR(CheckKey(head, key));
  return head;
}

}  // namespace xcache
