#include "cachestore/sessions/session_object.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "cachestore/sessions/session_record.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/sha256.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x4f535358;  // "XSSO"
constexpr uint16_t kVersion = 1;
constexpr uint8_t kVersionFormat = 1;  // of SessionVersion
constexpr size_t kCrcBytes = 4;
// Half of a digest: enough that no two tenants have the same.
constexpr size_t kTenantDigits = 32;

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(absl::StrCat("session object: ", what));
}

std::string_view BytesOf(const Revision& revision) {
  return {revision.data(), revision.size()};
}

Revision ReadRevision(FieldReader& r) {
  Revision revision{};
  const std::string_view bytes = r.Raw(revision.size());
  std::copy(bytes.begin(), bytes.end(), revision.begin());
  return revision;
}

void WriteAncestry(FieldWriter& w, const Ancestry& ancestry) {
  w.Int(static_cast<uint8_t>(ancestry.size()));
  for (const Revision& revision : ancestry) w.Raw(BytesOf(revision));
}

Ancestry ReadAncestry(FieldReader& r) {
  Ancestry ancestry(r.Int<uint8_t>());
  for (Revision& revision : ancestry) revision = ReadRevision(r);
  return ancestry;
}

}  // namespace

Revision MakeRevision() {
  std::random_device random;
  Revision revision;
  for (size_t i = 0; i < revision.size(); i += sizeof(uint32_t)) {
    std::string word;
    FieldWriter(word).Int(uint32_t{random()});
    std::copy(word.begin(), word.end(),
              revision.begin() + static_cast<ptrdiff_t>(i));
  }
  return revision;
}

bool SessionObject::Holds(const Revision& commit) const {
  return revision == commit ||
         std::find(ancestry.begin(), ancestry.end(), commit) != ancestry.end();
}

std::string EncodeSessionObject(const SessionObject& object) {
  std::string out;
  FieldWriter w(out);
  w.Int(kMagic);
  w.Int(kVersion);
  w.Int(uint8_t{object.is_deleted});
  w.Raw(BytesOf(object.revision));
  WriteAncestry(w, object.ancestry);
  w.Int(object.written_ms);
  w.Bytes(object.manifest);
  w.Int(Crc32c(out));
  return out;
}

absl::StatusOr<SessionObject> DecodeSessionObject(std::string_view bytes) {
  if (bytes.size() < kCrcBytes) {
    return Damaged(absl::StrCat("it has ", bytes.size(), " bytes"));
  }
  const std::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  const auto crc = FieldReader(bytes.substr(body.size())).Int<uint32_t>();
  if (const uint32_t actual = Crc32c(body); crc != actual) {
    return Damaged(absl::StrCat("expected CRC-32C ", absl::Hex(crc), ", found ",
                                absl::Hex(actual)));
  }
  FieldReader r(body);
  if (const auto magic = r.Int<uint32_t>(); magic != kMagic) {
    return Damaged(absl::StrCat("expected magic ", absl::Hex(kMagic),
                                ", found ", absl::Hex(magic)));
  }
  if (const auto version = r.Int<uint16_t>(); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("session object of format version ", version,
                     ", this program reads version ", kVersion));
  }
  SessionObject object;
  const auto is_deleted = r.Int<uint8_t>();
  object.is_deleted = is_deleted == 1;
  object.revision = ReadRevision(r);
  object.ancestry = ReadAncestry(r);
  object.written_ms = r.Int<int64_t>();
  object.manifest = r.Bytes();
  if (!r.ok() || r.remaining() != 0 || is_deleted > 1 ||
      object.is_deleted != object.manifest.empty()) {
    return Damaged("its fields do not fit");
  }
  return object;
}

SessionVersion SessionVersion::Next() const {
  SessionVersion next = {.etag = etag,
                         .is_ahead = true,
                         .revision = MakeRevision(),
                         .ancestry = ancestry};
  next.ancestry.insert(next.ancestry.begin(), revision);
  next.ancestry.resize(std::min(next.ancestry.size(),
                                is_ahead ? kMaxAncestryAhead : kMaxAncestry));
  return next;
}

std::string EncodeSessionVersion(const SessionVersion& version) {
  std::string out;
  FieldWriter w(out);
  w.Int(kVersionFormat);
  w.Int(uint8_t{version.is_ahead});
  w.Raw(BytesOf(version.revision));
  WriteAncestry(w, version.ancestry);
  w.Bytes(version.etag);
  return out;
}

std::optional<SessionVersion> DecodeSessionVersion(std::string_view bytes) {
  FieldReader r(bytes);
  const auto format = r.Int<uint8_t>();
  const auto is_ahead = r.Int<uint8_t>();
  SessionVersion version;
  version.is_ahead = is_ahead == 1;
  version.revision = ReadRevision(r);
  version.ancestry = ReadAncestry(r);
  version.etag = r.Bytes();
  if (!r.ok() || r.remaining() != 0 || format != kVersionFormat ||
      is_ahead > 1) {
    return std::nullopt;
  }
  return version;
}

std::string SessionObjectPrefix(std::string_view tenant) {
  return absl::StrCat(
      absl::string_view(kSessionObjects.data(), kSessionObjects.size()),
      ToHex(Sha256Of(tenant)).substr(0, kTenantDigits), "/");
}

std::string SessionObjectKey(std::string_view tenant, std::string_view id) {
  return absl::StrCat(SessionObjectPrefix(tenant),
                      ToHex(Sha256Of(SessionKeyBytes(tenant, id))));
}

}  // namespace xcache
