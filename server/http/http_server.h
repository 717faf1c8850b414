// The HTTP front end's port: connections, TLS, what a request may be, and the
// end. Listens from its start on; what it answers is its handler's matter.
//
// What one peer can cost (rules R5, R10): connections are the listener's to
// limit; a head and a body have limits of bytes and of time, and a body is read
// only once the handler has seen the head (which has the token), into memory
// that is set aside for it. A few threads serve all connections; none waits.
#ifndef XCACHE_SERVER_HTTP_HTTP_SERVER_H_
#define XCACHE_SERVER_HTTP_HTTP_SERVER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/frontend/frontend.h"
#include "server/frontend/listener.h"
#include "server/frontend/tls.h"
#include "server/http/exchange.h"

namespace xcache {

struct HttpServerOptions {
  ListenerOptions listen;
  std::shared_ptr<const TlsIdentity> tls;  // nullptr: plaintext
  // What bodies may take while they arrive, together, and each.
  int64_t arriving_bytes = 0;
  int64_t max_body_bytes = 0;
  // How long a peer may take for TLS and a head from its first byte on, for a
  // body, and between requests.
  std::chrono::milliseconds head_timeout{10'000};
  std::chrono::milliseconds body_timeout{60'000};
  std::chrono::milliseconds idle_timeout{75'000};
  Frontend* frontend = nullptr;  // borrowed; outlives the server
};

class HttpServer {
 public:
  // UNAVAILABLE: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Listen(
      const HttpServerOptions& options, std::unique_ptr<HttpHandler> handler);
  // Ends every exchange that is left. REQUIRES: the core calls no sink of
  // theirs any more.
  virtual ~HttpServer() = default;

  // With the port that was really bound.
  virtual const std::string& address() const = 0;
  virtual Listener::Stats connections() = 0;
  // Idle connections are closed from now on, and others after their answer.
  virtual void StopServing() = 0;
  // Waits for the answers that there are, at `deadline` cuts the rest off, and
  // closes the port.
  virtual void Shutdown(std::chrono::steady_clock::time_point deadline) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_HTTP_SERVER_H_
