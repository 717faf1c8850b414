// What clients' requests may hold of this process's memory while they are
// worked on (rule R5): a fixed share of --memory-bytes, reserved at start.
#ifndef XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_
#define XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
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
  struct State {
    void GiveBack(int64_t bytes, const std::string& tenant) XC_EXCLUDES(mu) {
      MutexLock lock(mu);
      held -= bytes;
      const auto mine = by_tenant.find(tenant);
      if (mine == by_tenant.end()) return;
      mine->second -= bytes;
      if (mine->second == 0) by_tenant.erase(mine);
    }

    Mutex mu;
    int64_t held XC_GUARDED_BY(mu) = 0;
    std::map<std::string, int64_t, std::less<>> by_tenant XC_GUARDED_BY(mu);
  };

 public:
  explicit RequestBytes(int64_t limit)
      : limit_(limit), state_(std::make_shared<State>()) {}

  // Given back when it goes, which may be after its RequestBytes: a call that
  // was cut off ends when its thread has time for it.
  class Held {
   public:
    Held() = default;
    Held(Held&& other) noexcept = default;
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
    Held(std::shared_ptr<State> from, int64_t bytes, std::string tenant)
        : from_(std::move(from)), bytes_(bytes), tenant_(std::move(tenant)) {}
    std::shared_ptr<State> from_;
    int64_t bytes_ = 0;
    std::string tenant_;
  };

  // Nothing: they do not fit beside those that are held. Or, of a tenant that
  // has some already, they would be more than seven times what it leaves free,
  // as everywhere (RunQueue); empty: there is only one tenant.
  std::optional<Held> Hold(int64_t bytes, std::string_view tenant = {}) {
    State& state = *state_;
    MutexLock lock(state.mu);
    const int64_t left = limit_ - state.held - bytes;
    if (left < 0) return std::nullopt;
    const auto mine = state.by_tenant.find(tenant);
    if (mine != state.by_tenant.end() && mine->second + bytes > kPart * left) {
      return std::nullopt;
    }
    state.held += bytes;
    if (!tenant.empty()) state.by_tenant[std::string(tenant)] += bytes;
    return Held(state_, bytes, std::string(tenant));
  }

  int64_t limit() const { return limit_; }
  int64_t held() const {
    MutexLock lock(state_->mu);
    return state_->held;
  }

 private:
  static constexpr int64_t kPart = 7;

  const int64_t limit_;
  const std::shared_ptr<State> state_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_REQUEST_BYTES_H_
