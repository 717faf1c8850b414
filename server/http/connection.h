// One connection of HTTP/1.1: reads a request, has it answered, writes the
// answer at the peer's pace, and begins anew. One request at a time.
#ifndef XCACHE_SERVER_HTTP_CONNECTION_H_
#define XCACHE_SERVER_HTTP_CONNECTION_H_

#include <atomic>
#include <memory>
#include <string>

#include "boost/asio/io_context.hpp"
#include "boost/asio/ssl/context.hpp"
#include "server/frontend/listener.h"
#include "server/frontend/request_bytes.h"
#include "server/http/http_server.h"

namespace xcache {

// What connections share. Borrowed; outlives them all.
struct ConnectionDeps {
  const HttpServerOptions& options;
  HttpHandler& handler;
  Listener& listener;
  RequestBytes& arriving;
  const std::atomic<bool>& draining;
};

class Connection {
 public:
  virtual ~Connection() = default;
  virtual void Start() = 0;
  // The server drains: closes it where it is idle. From any thread.
  virtual void Drain() = 0;
  // Closes it. From any thread.
  virtual void Cut() = 0;
};

// Owns `fd`. `tls` is null for plaintext. `registration` goes last of all it
// has.
std::shared_ptr<Connection> MakeConnection(
    boost::asio::io_context& io, int fd, const std::string& peer,
    std::shared_ptr<boost::asio::ssl::context> tls, const ConnectionDeps& deps,
    std::shared_ptr<void> registration);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_CONNECTION_H_
