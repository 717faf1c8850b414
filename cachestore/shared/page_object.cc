#include "cachestore/shared/page_object.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/sha256.h"

namespace xcache {
namespace {

constexpr std::string_view kMagic = "XPGO";
constexpr uint16_t kVersion = 1;

// Of all but the CRC itself, the last field of the envelope.
uint32_t CrcOf(std::string_view object) {
  return Crc32c(object.substr(kPageEnvelopeBytes),
                Crc32c(object.substr(0, kPageEnvelopeBytes - 4)));
}

}  // namespace

std::string PageFolder(int number) {
  return absl::StrCat("pages/", absl::Hex(number, absl::kZeroPad2), "/");
}

std::string PageObjectName(const PageKey& key) {
  return PageFolder(key[0]) + ToHex(key);
}

std::string WrapPage(const PageEnvelope& envelope, std::string_view page) {
  std::string object;
  object.reserve(kPageEnvelopeBytes + page.size());
  FieldWriter out(object);
  out.Raw(kMagic);
  out.Int(kVersion);
  out.Int(uint16_t{0});
  out.Hash(envelope.key);
  out.Hash(envelope.parent);
  out.Int(envelope.put_unix_ms);
  out.Int(static_cast<uint32_t>(page.size()));
  out.Int(Crc32c(page, Crc32c(object)));
  out.Raw(page);
  return object;
}

absl::StatusOr<PageEnvelope> ReadPageEnvelope(std::string_view object) {
  const auto damaged = [](std::string what) {
    return absl::DataLossError(absl::StrCat("page object: expected ", what));
  };
  if (object.size() < kPageEnvelopeBytes) {
    return damaged(absl::StrCat(kPageEnvelopeBytes, " bytes at least, found ",
                                object.size()));
  }
  FieldReader in(object);
  if (in.Raw(kMagic.size()) != kMagic) return damaged("XPGO, found another");
  if (const auto version = in.Int<uint16_t>(); version != kVersion) {
    return damaged(absl::StrCat("version ", kVersion, ", found ", version));
  }
  if (in.Int<uint16_t>() != 0) return damaged("a zero, found another");
  PageEnvelope envelope;
  envelope.key = in.Hash();
  envelope.parent = in.Hash();
  envelope.put_unix_ms = in.Int<int64_t>();
  const auto length = in.Int<uint32_t>();
  const auto crc = in.Int<uint32_t>();
  if (in.remaining() != length) {
    return damaged(
        absl::StrCat("a page of ", length, " bytes, found ", in.remaining()));
  }
  if (const uint32_t found = CrcOf(object); found != crc) {
    return damaged(absl::StrCat("CRC-32C ", crc, ", found ", found));
  }
  return envelope;
}

}  // namespace xcache
