// AWS Signature Version 4 in the Authorization header, as S3 and STS take it.
// Pure functions: neither a clock nor a network.
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
#ifndef XCACHE_CACHESTORE_SHARED_SIGV4_H_
#define XCACHE_CACHESTORE_SHARED_SIGV4_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cachestore/shared/credentials.h"
#include "engine/base/sha256.h"

namespace xcache {

using NameValues = std::vector<std::pair<std::string, std::string>>;

// Percent-encodes all but letters, digits and "-._~"; "/" too, if asked to.
std::string UriEncode(std::string_view text, bool encode_slash);

// Name=value, both encoded, sorted, joined with "&".
std::string CanonicalQuery(const NameValues& query);

// "20130524T000000Z"
std::string SigV4Time(int64_t unix_s);

struct SigV4Request {
  std::string method;
  std::string path;    // of the URL, encoded, as it is sent: "/bucket/a%20b"
  NameValues query{};  // not encoded
  // All that is signed: at least Host. Names in lower case, values without
  // space at either end.
  NameValues headers;
  Digest payload_digest{};
  std::string region;
  std::string service = "s3";
  int64_t unix_s = 0;
};

// Headers to be sent with those of the request: x-amz-date,
// x-amz-content-sha256, x-amz-security-token for a session's credentials, and
// authorization.
NameValues SignSigV4(const SigV4Request& request,
                     const Credentials& credentials);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_SIGV4_H_
