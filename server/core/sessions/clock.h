// What time it is for sessions. Expiry deletes conversations, so one reading of
// the wall clock is not believed (rule R11): it is held against a monotonic
// clock while the server runs, and against the newest session at its start.
//
// Where they differ by more than kTolerance, a session is stamped by the later
// of the two times and expires by the earlier: it may live too long, never too
// short. That ends when they agree again, or when the wall clock has gone on
// steadily for kConfirmation, which is then what time it is.
#ifndef XCACHE_SERVER_CORE_SESSIONS_CLOCK_H_
#define XCACHE_SERVER_CORE_SESSIONS_CLOCK_H_

#include <chrono>
#include <cstdint>
#include <functional>

#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class SessionClock {
 public:
  // More than what time servers put right in one step, less than what matters
  // to a session's expiry.
  static constexpr std::chrono::milliseconds kTolerance =
      std::chrono::seconds(10);
  // Somebody sees the warning within a day, and a session more a day costs its
  // place on disk.
  static constexpr std::chrono::milliseconds kConfirmation =
      std::chrono::hours(24);
  // How long a store may have been without a turn for the clock to be believed
  // at the start. After longer ones expiries wait for kConfirmation.
  static constexpr std::chrono::milliseconds kLongestSilence =
      std::chrono::hours(24);

  // Milliseconds: of the Unix epoch, and of a clock that is never set and goes
  // on while the machine sleeps. An empty function: the system's.
  SessionClock(std::function<int64_t()> wall_ms,
               std::function<int64_t()> monotonic_ms);

  // The newest stamp of any session in the store; 0: there is none.
  void Start(int64_t newest_ms) XC_EXCLUDES(mu_);

  // Now, as sessions' times are written.
  int64_t StampMs() XC_EXCLUDES(mu_) { return Read().stamp_ms; }
  // Now, as expiry times are held against it.
  int64_t ExpiryMs() XC_EXCLUDES(mu_) { return Read().expiry_ms; }
  // How far the wall clock is ahead of what is believed (negative: behind);
  // 0: it is believed.
  int64_t JumpMs() XC_EXCLUDES(mu_) { return Read().jump_ms; }

 private:
  struct Reading {
    int64_t stamp_ms = 0;
    int64_t expiry_ms = 0;
    int64_t jump_ms = 0;
  };
  Reading Read() XC_EXCLUDES(mu_);

  const std::function<int64_t()> wall_ms_;
  const std::function<int64_t()> monotonic_ms_;
  Mutex mu_;
  // The last moment that is believed, by both clocks.
  int64_t known_wall_ms_ XC_GUARDED_BY(mu_) = 0;
  int64_t known_monotonic_ms_ XC_GUARDED_BY(mu_) = 0;
  // The jump that is waited out, and since when; 0: none.
  int64_t jump_ms_ XC_GUARDED_BY(mu_) = 0;
  int64_t jumped_at_ms_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_CLOCK_H_
