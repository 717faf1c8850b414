#include "server/frontend/flood_guard.h"

#include <utility>

namespace xcache {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kSpan(10);
// Connections that have gone leave their entries behind for a while.
constexpr size_t kMaxEntries = 8192;

}  // namespace

bool FloodGuard::Begin(const void* connection) {
  const auto now = steady_clock::now();
  std::string peer;
  {
    MutexLock lock(mu_);
    if (connections_.size() >= kMaxEntries) {
      std::erase_if(connections_, [&](const auto& entry) {
        return now - entry.second.since > kSpan;
      });
    }
    Connection& state = connections_[connection];
    if (now - state.since > kSpan) {
      state.since = now;
      state.unarrived = 0;
    }
    if (++state.unarrived <= max_unarrived_) return true;
    state.unarrived = 0;
    peer = std::exchange(state.peer, "");
  }
  close_(peer);
  return false;
}

void FloodGuard::Arrive(const void* connection, std::string_view peer) {
  MutexLock lock(mu_);
  Connection& state = connections_[connection];
  if (state.unarrived > 0) --state.unarrived;
  if (state.peer != peer) state.peer = std::string(peer);
}

}  // namespace xcache
