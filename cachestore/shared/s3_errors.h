// What an answer, or the want of one, means: one place for S3's codes.
#ifndef XCACHE_CACHESTORE_SHARED_S3_ERRORS_H_
#define XCACHE_CACHESTORE_SHARED_S3_ERRORS_H_

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "cachestore/shared/http_client.h"

namespace xcache {

struct S3Verdict {
  absl::Status status;  // OK: 2xx, and 304
  std::string code;     // S3's name of the error, where there is one
  // Another try may do better, if the request is safe to repeat.
  bool is_passing = false;
  // The server may have done what it was asked to.
  bool may_have_been_done = false;
  // The request's time is not the server's.
  bool is_clock_skew = false;
  std::chrono::milliseconds retry_after{0};  // 0: the server names none
};

// `what` starts the message: the request, its endpoint and bucket.
S3Verdict JudgeS3Answer(const HttpAnswer& answer, const std::string& what);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_S3_ERRORS_H_
