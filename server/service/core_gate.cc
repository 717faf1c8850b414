#include "server/service/core_gate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace xcache {

void CoreGate::SetProgress(std::string_view what, double fraction) {
  MutexLock lock(mu_);
  what_ = std::string(what);
  percent_ = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * 100.0);
}

void CoreGate::Open(ServerCore* core) {
  MutexLock lock(mu_);
  if (state_ == State::kClosed) return;
  state_ = State::kOpen;
  core_ = core;
}

void CoreGate::Close() {
  MutexLock lock(mu_);
  state_ = State::kClosed;
}

bool CoreGate::is_open() const {
  MutexLock lock(mu_);
  return state_ == State::kOpen;
}

absl::StatusOr<ServerCore*> CoreGate::Enter() const {
  MutexLock lock(mu_);
  switch (state_) {
    case State::kOpen:
      return core_;
    case State::kLoading:
      return absl::UnavailableError(
          absl::StrCat("the model is loading: ", what_, ", ", percent_, " %"));
    case State::kClosed:
      break;
  }
  return absl::UnavailableError("the server is shutting down");
}

CoreGate::Progress CoreGate::progress() const {
  MutexLock lock(mu_);
  return {state_ == State::kLoading, what_, percent_};
}

}  // namespace xcache
