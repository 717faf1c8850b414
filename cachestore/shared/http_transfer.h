// One try of one HTTP request: a handle of libcurl and what its callbacks do
// with the bytes. When it starts, waits and ends is http_client.cc's to say.
#ifndef XCACHE_CACHESTORE_SHARED_HTTP_TRANSFER_H_
#define XCACHE_CACHESTORE_SHARED_HTTP_TRANSFER_H_

#include <curl/curl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cachestore/shared/byte_rate.h"
#include "cachestore/shared/http_client.h"

namespace xcache {

// What all transfers of a client share.
struct HttpTraffic {
  ByteRate rate;
  std::atomic<int64_t> sent_bytes{0};
  std::atomic<int64_t> received_bytes{0};
};

// Not thread-safe: it belongs to the client's thread. curl has its address.
class HttpTransfer {
 public:
  using Clock = HttpRequest::Clock;

  HttpTransfer(HttpRequest request, HttpTraffic& traffic)
      : request_(std::move(request)),
        traffic_(traffic),
        moved_at_(Clock::now()) {}
  HttpTransfer(const HttpTransfer&) = delete;
  HttpTransfer& operator=(const HttpTransfer&) = delete;

  // Makes the handle. False: no memory.
  bool SetUp(const HttpOptions& options);
  static HttpTransfer* Of(CURL* easy);

  const HttpRequest& request() const { return request_; }
  CURL* easy() const { return easy_.get(); }

  // When a byte last moved, or could have but for the limit of bytes a second.
  Clock::time_point MovedAt(Clock::time_point now) {
    if (is_paused_) moved_at_ = now;
    return moved_at_;
  }
  // The limit of bytes a second holds it up.
  bool is_paused() const { return is_paused_; }
  void Resume();

  // What came of it; the handle, which is in no multi handle any more, goes.
  HttpAnswer Finish(CURLcode code);
  HttpAnswer Fail(HttpAnswer::Outcome outcome, std::string error);

 private:
  struct EasyCleanup {
    void operator()(CURL* easy) const { curl_easy_cleanup(easy); }
  };
  struct ListCleanup {
    void operator()(curl_slist* list) const { curl_slist_free_all(list); }
  };

  // curl's callbacks; `user` is the transfer.
  static size_t OnHeader(char* data, size_t size, size_t count, void* user);
  static size_t OnAnswer(char* data, size_t size, size_t count, void* user);
  static size_t OnBody(char* to, size_t size, size_t count, void* user);
  static int OnSeek(void* user, curl_off_t offset, int origin);

  bool AddHeader(const std::string& line);

  const HttpRequest request_;
  HttpTraffic& traffic_;
  HttpAnswer answer_;
  Clock::time_point moved_at_;
  size_t sent_ = 0;  // of the body
  bool is_paused_ = false;
  bool is_too_large_ = false;
  char curl_error_[CURL_ERROR_SIZE] = {};
  std::unique_ptr<curl_slist, ListCleanup> headers_;
  std::unique_ptr<CURL, EasyCleanup> easy_;  // goes before what it points to
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_HTTP_TRANSFER_H_
