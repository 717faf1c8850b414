// One HTTP/1.1 request and its way back, between the transport (connection.cc)
// and those who answer (openai_api.h). Answers are whole, or streams of server-
// sent events at the client's pace (server/frontend/output_queue.h).
#ifndef XCACHE_SERVER_HTTP_EXCHANGE_H_
#define XCACHE_SERVER_HTTP_EXCHANGE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/core/request.h"
#include "server/frontend/frontend.h"
#include "server/frontend/output_queue.h"
#include "server/frontend/request_bytes.h"
#include "server/frontend/stream_watchdog.h"

namespace xcache {

// What comes before a request's body.
struct HttpHead {
  std::string method;  // "GET"
  std::string path;    // without what follows a '?'
  std::string query;   // that
  std::string peer;    // "1.2.3.4:5"
  bool keep_alive = true;
  bool chunks = true;  // the client's HTTP knows chunked bodies
  // The values of headers that are there.
  std::optional<std::string> authorization, content_type, request_id,
      traceparent, session;
  std::string tenant;  // the handler's
};

// "/v1/models" and "a=b" of "/v1/models?a=b#c" and "http://host/v1/models?a=b".
void SplitTarget(std::string_view target, std::string* path,
                 std::string* query);

struct HttpResponse {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string content_type = "application/json";
  std::string body;
};

// For OutputQueue: pieces of one response.
struct HttpBytes {
  std::string bytes;
};
inline void Join(HttpBytes more, HttpBytes* into) { into->bytes += more.bytes; }

// Thread-safe, but for `head` and `body`, which are whoever's answers.
class Exchange final : public WatchedStream {
 public:
  // `wake`: there is something to do, or, where `cut`, the connection is to be
  // closed at once. Called from any thread.
  using WakeFn = std::function<void(bool cut)>;
  Exchange(HttpHead head, std::string body,
           std::vector<RequestBytes::Held> arriving, const StreamLimits& limits,
           WakeFn wake);

  const HttpHead head;
  std::string body;
  std::vector<RequestBytes::Held> arriving;  // of the body; goes with it
  // Both go before the answer's end: who hears it may come with the next
  // request, or take the server down, at once.
  void DropBody();

  // Cancelled when the client goes away, or was given up.
  const std::shared_ptr<Cancellation>& cancellation() const {
    return cancellation_;
  }

  // The whole answer. Call this, or Begin, Write... and End.
  void Respond(const HttpResponse& response);
  void Begin(const HttpResponse& response);  // without its body
  void Write(std::string_view data);
  void End();

  // Nothing waits to be written.
  bool idle() const { return queue_.idle(); }
  absl::Status Explain(const absl::Status& status) const {
    return queue_.Explain(status);
  }
  // Called now and then, until the end (StreamWatchdog).
  void SetTicker(std::function<void(SteadyTime)> ticker) XC_EXCLUDES(mu_);

  // --- For the transport.
  OutputQueue<HttpBytes>& queue() { return queue_; }
  // Whether another request may follow on the connection. REQUIRES: ended.
  bool keep_alive() const { return keep_alive_; }
  void Tick(SteadyTime now) override XC_EXCLUDES(mu_);

 private:
  void Push(std::string bytes);

  const std::shared_ptr<Cancellation> cancellation_;
  OutputQueue<HttpBytes> queue_;
  const WakeFn wake_;
  std::atomic<bool> keep_alive_;
  Mutex mu_;
  std::function<void(SteadyTime)> ticker_ XC_GUARDED_BY(mu_);
};

// The response's bytes up to its body. `length`: of the body; none: it is
// chunked, or, without `chunks`, ends with the connection.
std::string RenderHead(const HttpResponse& response,
                       std::optional<size_t> length, bool chunks,
                       bool keep_alive);
// All of it, for who has no exchange.
std::string RenderResponse(const HttpResponse& response, bool with_body,
                           bool keep_alive);

// What a connection's requests are for. Thread-safe.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // Looks at a head, before the body is read, and fills in its tenant.
  struct Verdict {
    std::optional<HttpResponse> refusal;  // none: the body may come
    bool trusted = false;                 // it has shown whose it is
  };
  virtual Verdict Judge(HttpHead* head) = 0;
  // Answers it, now or later. Must not block.
  virtual void Handle(std::shared_ptr<Exchange> exchange) = 0;
  // An answer for what the transport itself refuses.
  virtual HttpResponse Fault(int status, std::string_view message) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_EXCHANGE_H_
