// An HTTP/1.1 server for tests that does what a test says, faults included: it
// cuts answers short, resets connections, and takes its time.
#ifndef XCACHE_TESTS_SUPPORT_HTTP_PEER_H_
#define XCACHE_TESTS_SUPPORT_HTTP_PEER_H_

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/mutex.h"

namespace xcache {

class HttpPeer {
 public:
  struct Request {
    std::string method;
    std::string target;                          // path and query, as sent
    std::map<std::string, std::string> headers;  // lower-case names
    std::string body;
    std::string bytes;   // all of it, as sent
    int connection = 0;  // which of the server's it came by
  };
  struct Reply {
    enum class Then { kKeep, kClose, kReset };
    std::string bytes{};  // with status line and headers
    Then then = Then::kKeep;
    std::chrono::milliseconds wait{0};  // before it is sent
  };
  // Called by a thread of the connection's own.
  using Handler = std::function<Reply(const Request&)>;

  explicit HttpPeer(Handler handler);
  ~HttpPeer();
  HttpPeer(const HttpPeer&) = delete;
  HttpPeer& operator=(const HttpPeer&) = delete;

  int port() const { return port_; }
  std::string url() const {
    return "http://127.0.0.1:" + std::to_string(port_);
  }
  int num_connections() const;

 private:
  void Accept();
  void Serve(int fd, int number);

  const Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  mutable Mutex mu_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::vector<int> open_ XC_GUARDED_BY(mu_);
  std::vector<std::thread> threads_ XC_GUARDED_BY(mu_);
  int num_connections_ XC_GUARDED_BY(mu_) = 0;
  std::thread acceptor_;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// An answer with its content-length.
std::string HttpBytes(int code, const std::string& body,
                      const HttpHeaders& headers = {});
inline HttpPeer::Reply HttpReply(int code, const std::string& body,
                                 const HttpHeaders& headers = {}) {
  return {.bytes = HttpBytes(code, body, headers)};
}
// The connection is reset, without a word.
inline HttpPeer::Reply ResetReply() {
  return {.bytes = "", .then = HttpPeer::Reply::Then::kReset};
}

}  // namespace xcache

#endif  // XCACHE_TESTS_SUPPORT_HTTP_PEER_H_
