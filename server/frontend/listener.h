// Accepts the TCP connections of a front end and hands them over, within limits
// on how many there are in all and from one address (rule R10: a peer without a
// token costs bounded descriptors). Speaks no protocol itself.
//
// Who takes a connection over closes it; the listener notices by looking at the
// descriptor. At a limit the oldest connection that has shown no token gives
// way, if it had a few seconds to do so; else the new one is refused.
#ifndef XCACHE_SERVER_FRONTEND_LISTENER_H_
#define XCACHE_SERVER_FRONTEND_LISTENER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace xcache {

struct ListenerOptions {
  std::string address;            // "host:port", port 0 for a free one
  std::string flag = "--listen";  // that gave it, for messages
  int max_connections = 1024;
  int max_connections_per_peer = 512;
  // How long a connection may be without MarkTrusted before it may be closed
  // to make room.
  std::chrono::milliseconds grace{5'000};
};

// Thread-safe.
class Listener {
 public:
  // Owns `fd` from then on: a connected, non-blocking socket, from `peer` as
  // below. Called from the listener's thread.
  using HandOverFn = std::function<void(int fd, const std::string& peer)>;

  // Binds, so that nobody else can. UNAVAILABLE: the address is in use, or not
  // one of this machine.
  static absl::StatusOr<std::unique_ptr<Listener>> Bind(
      const ListenerOptions& options);
  virtual ~Listener() = default;

  // With the port that was really bound.
  virtual const std::string& address() const = 0;

  // Accepts from now on. Call once.
  virtual void Start(HandOverFn hand_over) = 0;
  // Accepts no more; when it returns, `hand_over` is not called any more.
  virtual void Stop() = 0;

  // The connection from this peer ("1.2.3.4:5" or "[::1]:5") has shown whom it
  // belongs to: it does not give way to others.
  virtual void MarkTrusted(std::string_view peer) = 0;

  // Cuts the connection from this peer off, what it sent included; new ones
  // wait a moment then. False: there is none.
  virtual bool Close(std::string_view peer) = 0;
  // The same with all that have not shown whom they belong to.
  virtual void CloseUntrusted() = 0;

  struct Stats {
    int open = 0;
    uint64_t accepted = 0;
    uint64_t refused_total = 0;     // max_connections
    uint64_t refused_per_peer = 0;  // max_connections_per_peer
    uint64_t evicted = 0;           // closed to make room
    uint64_t cut_off = 0;           // Close and CloseUntrusted
    uint64_t accept_failures = 0;   // no descriptor or no memory left
  };
  virtual Stats stats() = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_LISTENER_H_
