// What the operator says of the shared tier (--shared and the flags beside it),
// read and checked without asking the store itself.
#ifndef XCACHE_SERVER_SHARED_CONFIG_H_
#define XCACHE_SERVER_SHARED_CONFIG_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cachestore/shared/s3_location.h"
#include "cachestore/shared/shared_policy.h"

namespace xcache {

struct SharedConfig {
  bool enabled() const { return !location.bucket.empty(); }

  S3Location location{};    // without a bucket: no shared tier
  HttpEndpoint endpoint{};  // without a host: AWS's of the region
  std::string region = "us-east-1";
  std::string ca_file;           // empty: the system's authorities
  std::string credentials_file;  // empty: from the environment
  uint64_t bytes_per_s = 0;      // of pages; 0: no limit
  SharedPolicy policy = SharedPolicy::kStrict;
  std::chrono::seconds page_life{7 * 24 * 3600};  // 0: for ever
  std::string encryption;                         // "", "AES256" or "aws:kms"
  std::string kms_key_id;                         // empty: the bucket's
};

// The flags as they are typed.
struct SharedFlags {
  std::string location, endpoint, region, ca_file, credentials_file;
  std::string bytes_per_s = "0";
  std::string policy = "strict";
  std::string page_life = "7d";
  std::string encryption = "none";
};

// `given`: which of the flags beside --shared were given, in any way.
// INVALID_ARGUMENT: one line that names the flag, what it takes and what it was
// given.
absl::StatusOr<SharedConfig> ReadSharedConfig(
    const SharedFlags& flags, const std::vector<std::string>& given);

}  // namespace xcache

#endif  // XCACHE_SERVER_SHARED_CONFIG_H_
