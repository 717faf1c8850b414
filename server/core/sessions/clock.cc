#include "server/core/sessions/clock.h"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "engine/base/log.h"

namespace xcache {
namespace {

int64_t ReadClockMs(clockid_t clock) {
  timespec now = {};
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

std::function<int64_t()> OrSystems(std::function<int64_t()> given,
                                   clockid_t clock) {
  if (given) return given;
  return [clock] { return ReadClockMs(clock); };
}

bool Near(int64_t a_ms, int64_t b_ms) {
  return std::abs(a_ms - b_ms) <= SessionClock::kTolerance.count();
}

}  // namespace

SessionClock::SessionClock(std::function<int64_t()> wall_ms,
                           std::function<int64_t()> monotonic_ms)
    : wall_ms_(OrSystems(std::move(wall_ms), CLOCK_REALTIME)),
      monotonic_ms_(OrSystems(std::move(monotonic_ms), CLOCK_BOOTTIME)) {
  known_wall_ms_ = wall_ms_();
  known_monotonic_ms_ = monotonic_ms_();
}

void SessionClock::Start(int64_t newest_ms) {
  {
    MutexLock lock(mu_);
    const int64_t silence_ms = known_wall_ms_ - newest_ms;
    if (newest_ms == 0 || (silence_ms >= -kTolerance.count() &&
                           silence_ms <= kLongestSilence.count())) {
      return;
    }
    known_wall_ms_ = newest_ms;
  }
  Read();
}

SessionClock::Reading SessionClock::Read() {
  MutexLock lock(mu_);
  const int64_t wall = wall_ms_();
  const int64_t monotonic = monotonic_ms_();
  const int64_t expected = known_wall_ms_ + (monotonic - known_monotonic_ms_);
  const int64_t jump = wall - expected;
  bool believed = Near(wall, expected);
  if (believed && jump_ms_ != 0) {
    XC_LOG_INFO("clock is back", "was_ahead_seconds={}", jump_ms_ / 1000);
  } else if (!believed && (jump_ms_ == 0 || !Near(jump, jump_ms_))) {
    jump_ms_ = jump;
    jumped_at_ms_ = monotonic;
    XC_LOG_WARN(
        "clock not believed: no session expires by it for now",
        "ahead_seconds={} until_hours={}", jump / 1000,
        std::chrono::duration_cast<std::chrono::hours>(kConfirmation).count());
  } else if (!believed && monotonic - jumped_at_ms_ >= kConfirmation.count()) {
    believed = true;
    XC_LOG_WARN("clock believed after all: it went on steadily",
                "ahead_seconds={}", jump_ms_ / 1000);
  }
  if (!believed) {
    return {.stamp_ms = std::max(wall, expected),
            .expiry_ms = std::min(wall, expected),
            .jump_ms = jump};
  }
  jump_ms_ = 0;
  known_wall_ms_ = wall;
  known_monotonic_ms_ = monotonic;
  return {.stamp_ms = wall, .expiry_ms = wall, .jump_ms = 0};
}

}  // namespace xcache
