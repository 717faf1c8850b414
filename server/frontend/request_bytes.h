// What clients' requests may hold of this process's memory while they are
// worked on (rule R5): a fixed share of --memory-bytes, reserved at start.
#ifndef XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_
#define XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/mutex.h"

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
        : from_(std::exchange(other.from_, nullptr)),
          bytes_(other.bytes_),
          tenant_(std::move(other.tenant_)) {}
    Held& operator=(Held&& other) noexcept {
      std::swap(from_, other.from_);
      std::swap(bytes_, other.bytes_);
      std::swap(tenant_, other.tenant_);
      return *this;
    }
    ~Held() {
      if (from_ != nullptr) from_->GiveBack(bytes_, tenant_);
    }

   private:
    friend class RequestBytes;
    Held(RequestBytes* from, int64_t bytes, std::string tenant)
        : from_(from), bytes_(bytes), tenant_(std::move(tenant)) {}
    RequestBytes* from_ = nullptr;
    int64_t bytes_ = 0;
    std::string tenant_;
  };

  // Nothing: they do not fit beside those that are held. Or, of a tenant that
  // has some already, they would be more than seven times what it leaves free,
  // as everywhere (RunQueue); empty: there is only one tenant.
  std::optional<Held> Hold(int64_t bytes, std::string_view tenant = {})
      XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    const int64_t left = limit_ - held_ - bytes;
    if (left < 0) return std::nullopt;
    const auto mine = by_tenant_.find(tenant);
    if (mine != by_tenant_.end() && mine->second + bytes > kPart * left) {
      return std::nullopt;
    }
    held_ += bytes;
    if (!tenant.empty()) by_tenant_[std::string(tenant)] += bytes;
    return Held(this, bytes, std::string(tenant));
  }

  int64_t limit() const { return limit_; }
  int64_t held() const XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return held_;
  }

 private:
  static constexpr int64_t kPart = 7;

  void GiveBack(int64_t bytes, const std::string& tenant) XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    held_ -= bytes;
    const auto mine = by_tenant_.find(tenant);
    if (mine == by_tenant_.end()) return;
    mine->second -= bytes;
    if (mine->second == 0) by_tenant_.erase(mine);
  }

  const int64_t limit_;
  mutable Mutex mu_;
  int64_t held_ XC_GUARDED_BY(mu_) = 0;
  std::map<std::string, int64_t, std::less<>> by_tenant_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_
