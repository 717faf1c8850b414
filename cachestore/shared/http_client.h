// Many HTTP/1.1 requests at a time over few connections that are kept: one
// thread around libcurl's multi interface. It knows no S3, repeats nothing by
// itself, and follows no redirection.
#ifndef XCACHE_CACHESTORE_SHARED_HTTP_CLIENT_H_
#define XCACHE_CACHESTORE_SHARED_HTTP_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace xcache {

struct HttpOptions {
  int max_connections = 16;  // requests beyond wait, first come first served
  std::chrono::milliseconds connect_timeout{2000};  // TLS included
  // A try in which no byte moves for so long, in either direction, is lost.
  std::chrono::milliseconds stall_timeout{5000};
  int64_t bytes_per_s = 0;  // of bodies, both directions together; 0: no limit
  std::string ca_file{};    // PEM; empty: the system's
};

struct HttpRequest {
  using Clock = std::chrono::steady_clock;

  std::string method;  // GET, HEAD, PUT, POST or DELETE
  std::string url;     // encoded
  std::vector<std::pair<std::string, std::string>> headers;
  // Of PUT and POST. Shared: a request that is sent again does not copy it.
  std::shared_ptr<const std::string> body;
  size_t max_answer_bytes = size_t{64} << 10;  // of an answer below 300
  Clock::time_point not_before{};
  Clock::time_point deadline{};
};

struct HttpAnswer {
  enum class Outcome {
    kAnswered,   // whole
    kNotSent,    // there was no connection: the server has seen nothing of it
    kLost,       // it failed on the way, there or back; the server may have it
    kTimedOut,   // the deadline passed; the server may have it
    kTooLarge,   // more than max_answer_bytes
    kCancelled,  // the client goes away
  };
  Outcome outcome = Outcome::kCancelled;
  int code = 0;  // HTTP's, of kAnswered
  std::vector<std::pair<std::string, std::string>> headers;  // lower-case names
  std::string body;   // of a code from 300 on at most 64 KiB
  std::string error;  // what went wrong, of the others; no secret
  // A connection that had been kept was found dead with the request on it, and
  // another was tried: the server may have seen the request before.
  bool may_have_been_sent_before = false;
  // The body's length was announced, so that it is known to be whole.
  bool is_whole_for_sure = false;

  // Empty where there is none.
  std::string_view Header(std::string_view name) const;
};

struct HttpStats {
  int64_t sent_bytes = 0;  // of bodies
  int64_t received_bytes = 0;
  int64_t running = 0;
  int64_t queued = 0;
};

// Thread-safe.
class HttpClient {
 public:
  using Done = std::function<void(HttpAnswer)>;

  // RESOURCE_EXHAUSTED: no memory, descriptors or threads.
  static absl::StatusOr<std::shared_ptr<HttpClient>> Create(
      const HttpOptions& options);
  ~HttpClient();  // Stop()
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // `done` is called once, in the client's thread; it must be quick, and may
  // start other requests. How many wait is the caller's to bound.
  void Start(HttpRequest request, Done done);

  // Calls in the client's thread at that time, or when it is stopped.
  void CallAt(HttpRequest::Clock::time_point at, std::function<void()> call);

  // Ends all requests with kCancelled, and from now on each at once. Not from a
  // callback.
  void Stop();

  HttpStats stats() const;

 private:
  class Loop;
  explicit HttpClient(std::unique_ptr<Loop> loop);

  const std::unique_ptr<Loop> loop_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_HTTP_CLIENT_H_
