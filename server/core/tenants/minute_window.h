// How much was used in the last 60 seconds, in steps of a second.
#ifndef XCACHE_SERVER_CORE_TENANTS_MINUTE_WINDOW_H_
#define XCACHE_SERVER_CORE_TENANTS_MINUTE_WINDOW_H_

#include <cstdint>
#include <deque>

namespace xcache {

// Times are milliseconds of a clock that does not go back.
class MinuteWindow {
 public:
  void Add(int64_t now_ms, int64_t n) {
    Forget(now_ms);
    const int64_t second = now_ms / 1000;
    if (seconds_.empty() || seconds_.back().second != second) {
      seconds_.push_back({second, 0});
    }
    seconds_.back().amount += n;
    sum_ += n;
  }

  int64_t Sum(int64_t now_ms) {
    Forget(now_ms);
    return sum_;
  }

  // Until no more than `most` of it is left, if nothing is added.
  int64_t MsUntil(int64_t now_ms, int64_t most) {
    Forget(now_ms);
    int64_t left = sum_;
    int64_t wait = 0;
    for (const Second& second : seconds_) {
      if (left <= most) break;
      left -= second.amount;
      wait = GoneAt(second) - now_ms;
    }
    return wait;
  }

 private:
  struct Second {
    int64_t second = 0;
    int64_t amount = 0;
  };
  // All of it is a minute old then.
  static int64_t GoneAt(const Second& second) {
    return (second.second + 1) * 1000 + 60'000;
  }
  void Forget(int64_t now_ms) {
    while (!seconds_.empty() && GoneAt(seconds_.front()) <= now_ms) {
      sum_ -= seconds_.front().amount;
      seconds_.pop_front();
    }
  }

  std::deque<Second> seconds_;  // at most 62
  int64_t sum_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_TENANTS_MINUTE_WINDOW_H_
