// A limit of bytes a second, as a bucket that fills with time. Whoever finds
// something in it may take more than that: the bucket then owes, and nobody
// takes until it has something again. Not thread-safe.
#ifndef XCACHE_CACHESTORE_SHARED_BYTE_RATE_H_
#define XCACHE_CACHESTORE_SHARED_BYTE_RATE_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace xcache {

class ByteRate {
 public:
  using Clock = std::chrono::steady_clock;

  // 0: no limit.
  ByteRate(int64_t bytes_per_s, Clock::time_point now)
      : bytes_per_s_(static_cast<double>(bytes_per_s)), filled_at_(now) {}

  void Fill(Clock::time_point now) {
    // A twentieth of a second's worth: what is not used in time is gone.
    const double most = std::max(bytes_per_s_ / 20, 1.0);
    const std::chrono::duration<double> passed = now - filled_at_;
    bytes_ = std::min(bytes_ + passed.count() * bytes_per_s_, most);
    filled_at_ = now;
  }
  bool MayTake() const { return bytes_per_s_ <= 0 || bytes_ > 0; }
  void Take(size_t num_bytes) {
    if (bytes_per_s_ > 0) bytes_ -= static_cast<double>(num_bytes);
  }
  // Until there is something in it.
  std::chrono::milliseconds Wait() const {
    if (MayTake()) return std::chrono::milliseconds(0);
    return std::chrono::milliseconds(
        1 + static_cast<int64_t>(-bytes_ / bytes_per_s_ * 1000));
  }

 private:
  const double bytes_per_s_;
  double bytes_ = 0;
  Clock::time_point filled_at_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_BYTE_RATE_H_
