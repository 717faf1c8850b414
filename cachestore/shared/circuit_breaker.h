// Whether a store that does not answer is asked at all. After some failures in
// a row nothing is asked for a while (it is open); then one call is let through
// (it is half open), and what comes of that decides. So a store that is away
// costs nobody a deadline, and is found again soon after it is back.
#ifndef XCACHE_CACHESTORE_SHARED_CIRCUIT_BREAKER_H_
#define XCACHE_CACHESTORE_SHARED_CIRCUIT_BREAKER_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class CircuitBreaker {
 public:
  using Clock = std::chrono::steady_clock;
  enum class State { kClosed, kHalfOpen, kOpen };
  struct Options {
    std::string name = "shared store";  // for the log
    int max_failures = 5;               // in a row
    // How long it stays open: at first, doubled each time that the one call
    // fails, and at most; less up to a quarter, at random, so that replicas
    // do not come back all at once.
    std::chrono::milliseconds first_pause{500};
    std::chrono::milliseconds longest_pause{5000};
  };
  // A call that was let through.
  using Ticket = uint64_t;

  explicit CircuitBreaker(const Options& options) : options_(options) {}

  // Nothing: not now. Else End is to be called, soon after the call's deadline
  // at the latest.
  std::optional<Ticket> Begin(Clock::time_point now);
  // What came of it. Of CANCELLED nothing is learnt.
  void End(Ticket ticket, const absl::Status& status, Clock::time_point now);

  State state() const;
  int64_t num_opened() const;

 private:
  // What End does under the lock; `opened` and `closed`: for the log.
  void EndLocked(Ticket ticket, const absl::Status& status,
                 Clock::time_point now, bool* opened, bool* closed)
      XC_REQUIRES(mu_);
  void Open(Clock::time_point now) XC_REQUIRES(mu_);

  const Options options_;
  mutable Mutex mu_;
  State state_ XC_GUARDED_BY(mu_) = State::kClosed;
  // Rises with each change of the state: late answers of calls that began
  // before it say nothing of the store as it is now.
  Ticket era_ XC_GUARDED_BY(mu_) = 0;
  int failures_ XC_GUARDED_BY(mu_) = 0;
  std::chrono::milliseconds pause_ XC_GUARDED_BY(mu_){0};
  Clock::time_point open_until_ XC_GUARDED_BY(mu_);
  int64_t num_opened_ XC_GUARDED_BY(mu_) = 0;
  std::mt19937_64 random_ XC_GUARDED_BY(mu_){std::random_device{}()};
};

// Whether a store that said so is there and works: what there is none of, and
// what another was faster with, are answers.
bool IsAnswer(const absl::Status& status);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_CIRCUIT_BREAKER_H_
