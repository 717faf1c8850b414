// Where an S3 store is, as an operator writes it: s3://bucket/prefix and, for a
// store that is not AWS's, the URL of its endpoint.
#ifndef XCACHE_CACHESTORE_SHARED_S3_LOCATION_H_
#define XCACHE_CACHESTORE_SHARED_S3_LOCATION_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace xcache {

struct S3Location {
  std::string bucket;
  std::string prefix{};  // empty, or a key that ends in "/"
};

// "s3://bucket", "s3://bucket/a/b", with a slash at the end or without.
// INVALID_ARGUMENT with what was expected and found.
absl::StatusOr<S3Location> ParseS3Location(std::string_view text);

struct HttpEndpoint {
  bool tls = true;
  // As the Host header has it: the port only where it is not the scheme's own.
  std::string host{};

  std::string Url() const { return (tls ? "https://" : "http://") + host; }
};

// "http://host", "https://host:port", "http://[::1]:8333"; nothing behind it
// but a slash. INVALID_ARGUMENT; what may be a password is not in the message.
absl::StatusOr<HttpEndpoint> ParseHttpEndpoint(std::string_view text);

// A name of an AWS region, or what another store calls so: 1 to 63 lower-case
// letters, digits and hyphens. INVALID_ARGUMENT.
absl::Status CheckRegion(std::string_view region);

// As object_store.h says. INVALID_ARGUMENT.
absl::Status CheckObjectKey(std::string_view key);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_S3_LOCATION_H_
