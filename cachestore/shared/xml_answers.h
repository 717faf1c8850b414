// The XML that S3 and STS answer with. Bytes from outside: whatever they are,
// a parser gives values or an error.
#ifndef XCACHE_CACHESTORE_SHARED_XML_ANSWERS_H_
#define XCACHE_CACHESTORE_SHARED_XML_ANSWERS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "cachestore/shared/credentials.h"
#include "cachestore/shared/object_store.h"

namespace xcache {

// S3's name of an error ("NoSuchKey"), at most 64 letters and digits; empty:
// there is none.
std::string ParseErrorCode(std::string_view xml);

struct ListAnswer {
  std::vector<ListedObject> objects;  // with whole keys
  bool is_truncated = false;
};

// UNAVAILABLE: not a ListBucketResult, with what was found.
absl::StatusOr<ListAnswer> ParseListAnswer(std::string_view xml);

struct TemporaryCredentials {
  Credentials credentials;
  int64_t expires_unix_ms = 0;
};

// Of AssumeRoleWithWebIdentity. UNAVAILABLE: not one; no secret in the message.
absl::StatusOr<TemporaryCredentials> ParseWebIdentityAnswer(
    std::string_view xml);

// "2009-10-12T17:50:30.000Z" in milliseconds of the Unix epoch.
std::optional<int64_t> ParseXmlTime(const std::string& text);

// An etag without its quotes; empty: it is none.
std::string UnquoteEtag(std::string_view text);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_XML_ANSWERS_H_
