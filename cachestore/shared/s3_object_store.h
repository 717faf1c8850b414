// An ObjectStore in a bucket that speaks S3: AWS's, or another's at an endpoint
// of its own (Ceph, MinIO, SeaweedFS, R2). The store must know If-Match and
// If-None-Match on PUT; one that says so with 501 gives UNIMPLEMENTED.
//
// A Put with a condition writes two metadata fields with the object, a random
// number and the condition, by which a repeated try knows its own work again:
//   x-amz-meta-xcache-put     32 hexadecimal digits, of this Put
//   x-amz-meta-xcache-after   the etag it replaced, or "absent"
#ifndef XCACHE_CACHESTORE_SHARED_S3_OBJECT_STORE_H_
#define XCACHE_CACHESTORE_SHARED_S3_OBJECT_STORE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cachestore/shared/credentials.h"
#include "cachestore/shared/http_client.h"
#include "cachestore/shared/object_store.h"
#include "cachestore/shared/s3_location.h"

namespace xcache {

struct S3Options {
  S3Location location{};
  // Without a host: AWS's of the region, with the bucket in the host's name;
  // the bucket is in the path of any other.
  HttpEndpoint endpoint{};
  std::string region = "us-east-1";
  std::chrono::milliseconds timeout{10000};  // of a call that names none
  // Larger objects are neither put nor got.
  size_t max_object_bytes = size_t{64} << 20;
  // Bodies that wait to be sent, and calls that are not done. Answers take at
  // most max_object_bytes for each connection.
  int64_t max_queued_bytes = int64_t{256} << 20;
  int64_t max_calls = 4096;
  // What objects are to be encrypted with on the server: "", "AES256",
  // "aws:kms"; and the key of the latter, empty: the bucket's.
  std::string server_side_encryption{};
  std::string kms_key_id{};
};

// INVALID_ARGUMENT: the region, or the encryption. `http` is stopped with the
// store; credentials that come over HTTP are given the same one.
absl::StatusOr<std::unique_ptr<ObjectStore>> OpenS3ObjectStore(
    const S3Options& options, std::shared_ptr<HttpClient> http,
    std::unique_ptr<CredentialsProvider> credentials);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_S3_OBJECT_STORE_H_
