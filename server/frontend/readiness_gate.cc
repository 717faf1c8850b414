#include "server/frontend/readiness_gate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"

namespace xcache {

void ReadinessGate::SetProgress(std::string_view what, double fraction) {
  MutexLock lock(mu_);
  what_ = std::string(what);
  percent_ = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * 100.0);
}

void ReadinessGate::Open(ServerCore* core) {
  MutexLock lock(mu_);
  if (state_ == State::kClosed) return;
  state_ = State::kOpen;
  core_ = core;
}

void ReadinessGate::Close() {
  MutexLock lock(mu_);
  state_ = State::kClosed;
}

bool ReadinessGate::is_open() const {
  MutexLock lock(mu_);
  return state_ == State::kOpen;
}

absl::StatusOr<ServerCore*> ReadinessGate::Enter() const {
  MutexLock lock(mu_);
  switch (state_) {
    case State::kOpen:
      return core_;
    case State::kLoading:
      return WithReason(
          absl::UnavailableError(absl::StrCat("the model is loading: ", what_,
                                              ", ", percent_, " %")),
          Reason::kLoading);
    case State::kClosed:
      break;
  }
  return ShuttingDown();
}

ReadinessGate::Progress ReadinessGate::progress() const {
  MutexLock lock(mu_);
  return {state_ == State::kLoading, what_, percent_};
}

}  // namespace xcache
