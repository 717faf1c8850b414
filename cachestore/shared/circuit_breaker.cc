#include "cachestore/shared/circuit_breaker.h"

#include <algorithm>

#include "engine/base/log.h"

namespace xcache {

bool IsAnswer(const absl::Status& status) {
  return status.ok() || absl::IsNotFound(status) || absl::IsAborted(status);
}

std::optional<CircuitBreaker::Ticket> CircuitBreaker::Begin(
    Clock::time_point now) {
  MutexLock lock(mu_);
  if (state_ == State::kClosed) return era_;
  // One call is under way where it is half open.
  if (state_ == State::kHalfOpen || now < open_until_) return std::nullopt;
  state_ = State::kHalfOpen;
  return ++era_;
}

void CircuitBreaker::End(Ticket ticket, const absl::Status& status,
                         Clock::time_point now) {
  bool opened = false, closed = false;
  {
    MutexLock lock(mu_);
    EndLocked(ticket, status, now, &opened, &closed);
  }
  if (opened) {
    XC_LOG_WARN("store away", "store={} error={}", LogValue(options_.name),
                LogValue(std::string(status.message())));
  } else if (closed) {
    XC_LOG_INFO("store back", "store={}", LogValue(options_.name));
  }
}

void CircuitBreaker::EndLocked(Ticket ticket, const absl::Status& status,
                               Clock::time_point now, bool* opened,
                               bool* closed) {
  if (ticket != era_ || state_ == State::kOpen) return;
  if (IsAnswer(status)) {
    *closed = state_ == State::kHalfOpen;
    if (*closed) ++era_;
    state_ = State::kClosed;
    failures_ = 0;
    pause_ = std::chrono::milliseconds(0);
    return;
  }
  if (absl::IsCancelled(status)) {
    // The next call is the one then.
    if (state_ == State::kHalfOpen) state_ = State::kOpen;
    return;
  }
  if (state_ == State::kHalfOpen || ++failures_ >= options_.max_failures) {
    *opened = state_ == State::kClosed;
    Open(now);
  }
}

void CircuitBreaker::Open(Clock::time_point now) {
  if (state_ == State::kClosed) ++num_opened_;
  state_ = State::kOpen;
  ++era_;
  failures_ = 0;
  pause_ = std::clamp(pause_ * 2, options_.first_pause, options_.longest_pause);
  std::uniform_int_distribution<int64_t> less(0, pause_.count() / 4);
  open_until_ = now + pause_ - std::chrono::milliseconds(less(random_));
}

CircuitBreaker::State CircuitBreaker::state() const {
  MutexLock lock(mu_);
  return state_;
}

int64_t CircuitBreaker::num_opened() const {
  MutexLock lock(mu_);
  return num_opened_;
}

}  // namespace xcache
