// Notices connections that begin call after call and finish the sending of
// none, as a flood of HTTP/2 resets does. Each such call costs the transport
// some 10 KB for longer than the peer takes to begin the next one, so such a
// connection is to be closed.
#ifndef XCACHE_SERVER_FRONTEND_FLOOD_GUARD_H_
#define XCACHE_SERVER_FRONTEND_FLOOD_GUARD_H_

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class FloodGuard {
 public:
  // `peer` is empty where none of the connection's calls has ever arrived: then
  // nobody knows which one it is.
  using CloseFn = std::function<void(const std::string& peer)>;

  // `max_unarrived`: calls that a connection may have begun, in a span of ten
  // seconds, beyond those that arrived.
  FloodGuard(int max_unarrived, CloseFn close)
      : max_unarrived_(max_unarrived), close_(std::move(close)) {}

  // A call's headers are there. `connection` tells connections apart. False:
  // there were too many of them; the connection has been closed.
  bool Begin(const void* connection) XC_EXCLUDES(mu_);
  // The rest of it too.
  void Arrive(const void* connection, std::string_view peer) XC_EXCLUDES(mu_);

 private:
  struct Connection {
    int unarrived = 0;
    std::chrono::steady_clock::time_point since;
    std::string peer;
  };

  const int max_unarrived_;
  const CloseFn close_;
  Mutex mu_;
  std::unordered_map<const void*, Connection> connections_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_FLOOD_GUARD_H_
