// Whether requests are let in: not while the model loads, nor while the server
// drains. The services hold the gate, so that they can listen before there is a
// core.
#ifndef XCACHE_SERVER_FRONTEND_READINESS_GATE_H_
#define XCACHE_SERVER_FRONTEND_READINESS_GATE_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"

namespace xcache {

class ServerCore;

// Thread-safe.
class ReadinessGate {
 public:
  // What loading is at, for messages: 0 to 1.
  void SetProgress(std::string_view what, double fraction) XC_EXCLUDES(mu_);
  // `core` must outlive every request.
  void Open(ServerCore* core) XC_EXCLUDES(mu_);
  void Close() XC_EXCLUDES(mu_);
  bool is_open() const XC_EXCLUDES(mu_);

  // UNAVAILABLE while there is nothing to enter.
  absl::StatusOr<ServerCore*> Enter() const XC_EXCLUDES(mu_);

  struct Progress {
    bool loading = false;
    std::string what;
    int percent = 0;
  };
  Progress progress() const XC_EXCLUDES(mu_);

 private:
  enum class State { kLoading, kOpen, kClosed };

  mutable Mutex mu_;
  State state_ XC_GUARDED_BY(mu_) = State::kLoading;
  ServerCore* core_ XC_GUARDED_BY(mu_) = nullptr;
  std::string what_ XC_GUARDED_BY(mu_) = "starting";
  int percent_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_READINESS_GATE_H_
