// One S3 request as a caller sees it: signed with the credentials in force,
// tried again while that helps and is safe, within a deadline.
#ifndef XCACHE_CACHESTORE_SHARED_S3_CLIENT_H_
#define XCACHE_CACHESTORE_SHARED_S3_CLIENT_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>

#include "cachestore/shared/credentials.h"
#include "cachestore/shared/http_client.h"
#include "cachestore/shared/s3_errors.h"
#include "cachestore/shared/s3_location.h"
#include "cachestore/shared/sigv4.h"
#include "engine/base/mutex.h"

namespace xcache {

struct S3Request {
  std::string method;
  std::string key{};  // whole; empty: the bucket
  NameValues query{};
  NameValues headers{};
  std::shared_ptr<const std::string> body{};
  size_t max_answer_bytes = size_t{64} << 10;
  // What a second try may do wrong where the first one was done unseen.
  bool is_safe_to_repeat = true;
  HttpRequest::Clock::time_point deadline{};
};

struct S3Reply {
  S3Verdict verdict;  // of the last try
  HttpAnswer answer;
  // A try before the last may have been done, or the last one twice.
  bool may_have_been_done_before = false;
};

struct S3ClientOptions {
  S3Location location;
  HttpEndpoint endpoint;
  bool bucket_in_host = false;  // https://bucket.host/key, not host/bucket/key
  std::string region;
  // The wait before the second try; it doubles, with jitter, up to the longest.
  std::chrono::milliseconds first_backoff{50};
  std::chrono::milliseconds longest_backoff{2000};
};

// Thread-safe.
class S3Client {
 public:
  using Done = std::function<void(S3Reply)>;

  S3Client(S3ClientOptions options, std::shared_ptr<HttpClient> http,
           std::unique_ptr<CredentialsProvider> credentials);
  ~S3Client();  // Stop()

  // `done` is called once, in the HTTP client's thread or the provider's.
  void Send(S3Request request, Done done);
  // Stops the HTTP client; all that wait are told so. Not from a callback.
  void Stop() { http_->Stop(); }

  // "http://host bucket b"
  const std::string& where() const { return where_; }
  HttpStats http_stats() const { return http_->stats(); }
  int64_t retries() const { return retries_; }
  int64_t throttled() const { return throttled_; }

 private:
  struct Call;

  void Try(const std::shared_ptr<Call>& call);
  void SendSigned(const std::shared_ptr<Call>& call,
                  const Credentials& credentials);
  void Judge(const std::shared_ptr<Call>& call, HttpAnswer answer);
  // Tries again if it may; else the call is over.
  void Conclude(const std::shared_ptr<Call>& call, S3Reply reply);
  void CorrectClock(const HttpAnswer& answer);
  std::chrono::milliseconds Backoff(int num_tries);

  const S3ClientOptions options_;
  const std::string host_;
  const std::string where_;
  const std::shared_ptr<HttpClient> http_;
  const std::unique_ptr<CredentialsProvider> credentials_;
  std::atomic<int64_t> clock_offset_s_{0};  // the server's clock, less ours
  std::atomic<int64_t> retries_{0};
  std::atomic<int64_t> throttled_{0};
  Mutex mu_;
  std::mt19937_64 random_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_S3_CLIENT_H_
