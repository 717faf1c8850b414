#include "cachestore/sessions/session_record.h"

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x53455358;  // "XSES"
// Magic, version, reserved, length; the CRC at the end.
constexpr size_t kHeaderBytes = 12;
constexpr size_t kCrcBytes = 4;
// The least that a message, and a setting, take.
constexpr size_t kMinMessageBytes = 1 + 4 + 4 + 4;
constexpr size_t kMinSettingBytes = 4 + 4;

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat(
      "session record: ", absl::string_view(what.data(), what.size())));
}

}  // namespace

std::string EncodeSessionRecord(const SessionRecord& record) {
  std::string out;
  size_t size = 512 + 4 * record.tokens.size() + 32 * record.page_keys.size();
  for (const SessionMessage& message : record.messages) {
    size += kMinMessageBytes + message.content.size();
  }
  out.reserve(size);
  FieldWriter w(out);
  w.Int(kMagic);
  w.Int(kSessionFormatVersion);
  w.Int(uint16_t{0});
  w.Int(uint32_t{0});  // the length, known at the end
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
  w.Int(record.page_bytes);
  w.Int(static_cast<uint32_t>(record.settings.size()));
  for (const auto& [name, value] : record.settings) {
    w.Bytes(name);
    w.Bytes(value);
  }
  std::string length;
  FieldWriter(length).Int(static_cast<uint32_t>(out.size() + kCrcBytes));
  out.replace(8, 4, length);
  w.Int(Crc32c(out));
  return out;
}

absl::StatusOr<SessionRecord> DecodeSessionRecord(std::string_view bytes) {
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
  record.tenant = r.Bytes();
  record.id = r.Bytes();
  record.title = r.Bytes();
  record.create_ms = r.Int<int64_t>();
  record.update_ms = r.Int<int64_t>();
  record.expire_ms = r.Int<int64_t>();
  record.ttl_ms = r.Int<int64_t>();
  record.codec = r.Bytes();
  record.cache_fp = r.Hash();
  record.model_fp = r.Hash();
  record.numerics_id = r.Bytes();
  record.turn = r.Int<uint64_t>();
  const auto pinned = r.Int<uint8_t>();
  if (pinned > 1) r.Fail();
  record.pinned = pinned == 1;
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
  for (PageKey& key : record.page_keys) key = r.Hash();
  if (version >= 2) record.page_bytes = r.Int<uint64_t>();
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
  return record;
}

}  // namespace xcache
