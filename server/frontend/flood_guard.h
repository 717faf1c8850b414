// Notices connections that begin call after call and finish the sending of
// none, as a flood of HTTP/2 resets does. Each such call costs the transport
// up to 17 KB for longer than the peer takes to begin the next one, so such
// connections are to be closed: one that has too many of them, and, where many
// have too many together, those that have most.
#ifndef XCACHE_SERVER_FRONTEND_FLOOD_GUARD_H_
#define XCACHE_SERVER_FRONTEND_FLOOD_GUARD_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>

#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class FloodGuard {
 public:
  // Of calls begun in a span of ten seconds, beyond those that arrived.
  struct Limits {
    int64_t per_connection = 0;
    int64_t in_all = 0;
  };
  static constexpr int64_t kCallBytes = 16 << 10;

  // `peer` is empty where none of the connection's calls has ever arrived: then
  // nobody knows which one it is.
  using CloseFn = std::function<void(const std::string& peer)>;

  FloodGuard(const Limits& limits, CloseFn close)
      : limits_(limits), close_(std::move(close)) {}

  // A call's headers are there. `connection` tells connections apart. False:
  // there were too many of them; the connection has been closed.
  bool Begin(const void* connection) XC_EXCLUDES(mu_);
  // The rest of it too.
  void Arrive(const void* connection, std::string_view peer) XC_EXCLUDES(mu_);

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Connection {
    int64_t unarrived = 0;
    Time since;
    std::string peer;
  };

  // Forgets the connection's calls; its peer is among those to be closed.
  void Condemn(Connection& connection, std::set<std::string>* peers)
      XC_REQUIRES(mu_);
  // The same with all that have as many calls as the average, or more.
  void CondemnBusiest(std::set<std::string>* peers) XC_REQUIRES(mu_);
  // Connections that have gone leave their entries behind for a while.
  void ForgetBefore(Time time) XC_REQUIRES(mu_);

  const Limits limits_;
  const CloseFn close_;
  Mutex mu_;
  std::unordered_map<const void*, Connection> connections_ XC_GUARDED_BY(mu_);
  int64_t unarrived_ XC_GUARDED_BY(mu_) = 0;  // of all of them
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_FLOOD_GUARD_H_
