// What clients' requests may hold of this process's memory while they are
// worked on (rule R5): a fixed share of --memory-bytes, reserved at start.
#ifndef XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_
#define XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>

namespace xcache {

// How --memory-bytes is shared with what clients send. Half of `total` is for
// bytes on their way in, the other half for requests that arrived.
struct RequestMemory {
  int64_t total_bytes = 0;
  int64_t arriving_bytes() const { return total_bytes / 2; }
  int64_t arrived_bytes() const { return total_bytes / 2; }
  // One message: a few must fit at once, and one that is worked on is there
  // twice, as it came and converted.
  int64_t max_message_bytes() const {
    return std::min<int64_t>(kMaxMessageBytes, total_bytes / 8);
  }

  static constexpr int64_t kMaxMessageBytes = int64_t{16} << 20;
  static RequestMemory Of(int64_t memory_bytes) {
    return {std::clamp<int64_t>(memory_bytes / 8, int64_t{4} << 20,
                                int64_t{256} << 20)};
  }
};

// Counts the bytes of the requests that arrived. Thread-safe.
class RequestBytes {
 public:
  explicit RequestBytes(int64_t limit) : limit_(limit) {}

  // Given back when it goes. Must not outlive its RequestBytes.
  class Held {
   public:
    Held() = default;
    Held(Held&& other) noexcept
        : from_(std::exchange(other.from_, nullptr)), bytes_(other.bytes_) {}
    Held& operator=(Held&& other) noexcept {
      std::swap(from_, other.from_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Held() {
      if (from_ != nullptr) from_->held_.fetch_sub(bytes_);
    }

   private:
    friend class RequestBytes;
    Held(RequestBytes* from, int64_t bytes) : from_(from), bytes_(bytes) {}
    RequestBytes* from_ = nullptr;
    int64_t bytes_ = 0;
  };

  // Nothing: they do not fit beside those that are held.
  std::optional<Held> Hold(int64_t bytes) {
    if (held_.fetch_add(bytes) + bytes > limit_) {
      held_.fetch_sub(bytes);
      return std::nullopt;
    }
    return Held(this, bytes);
  }

  int64_t limit() const { return limit_; }
  int64_t held() const { return held_.load(std::memory_order_relaxed); }

 private:
  const int64_t limit_;
  std::atomic<int64_t> held_{0};
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_
