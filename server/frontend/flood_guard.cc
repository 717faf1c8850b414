#include "server/frontend/flood_guard.h"

#include <utility>

namespace xcache {
namespace {

constexpr std::chrono::seconds kSpan(10);
constexpr size_t kMaxEntries = 8192;

}  // namespace

bool FloodGuard::Begin(const void* connection) {
  const Time now = std::chrono::steady_clock::now();
  std::set<std::string> peers;
  bool goes_on = true;
  {
    MutexLock lock(mu_);
    if (connections_.size() >= kMaxEntries) ForgetBefore(now - kSpan);
    Connection& state = connections_[connection];
    if (now - state.since > kSpan) {
      unarrived_ -= state.unarrived;
      state.unarrived = 0;
      state.since = now;
    }
    ++state.unarrived;
    ++unarrived_;
    if (state.unarrived > limits_.per_connection) Condemn(state, &peers);
    if (unarrived_ > limits_.in_all) {
      ForgetBefore(now - kSpan);  // not this one: its span has just begun
      if (unarrived_ > limits_.in_all) CondemnBusiest(&peers);
    }
    goes_on = state.unarrived > 0;
  }
  for (const std::string& peer : peers) close_(peer);
  return goes_on;
}

void FloodGuard::Arrive(const void* connection, std::string_view peer) {
  MutexLock lock(mu_);
  Connection& state = connections_[connection];
  if (state.unarrived > 0) {
    --state.unarrived;
    --unarrived_;
  }
  if (state.peer != peer) state.peer = std::string(peer);
}

void FloodGuard::Condemn(Connection& connection, std::set<std::string>* peers) {
  unarrived_ -= connection.unarrived;
  connection.unarrived = 0;
  peers->insert(std::exchange(connection.peer, ""));
}

void FloodGuard::CondemnBusiest(std::set<std::string>* peers) {
  int64_t num_busy = 0;
  for (const auto& [_, connection] : connections_) {
    num_busy += connection.unarrived > 0;
  }
  const int64_t total = unarrived_;
  for (auto& [_, connection] : connections_) {
    if (connection.unarrived > 0 && connection.unarrived * num_busy >= total) {
      Condemn(connection, peers);
    }
  }
}

void FloodGuard::ForgetBefore(Time time) {
  for (auto it = connections_.begin(); it != connections_.end();) {
    const auto next = std::next(it);
    if (it->second.since < time) {
      unarrived_ -= it->second.unarrived;
      connections_.erase(it);
    }
    it = next;
  }
}

}  // namespace xcache
