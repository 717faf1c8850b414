// What waits to be written to one client, at the client's pace: the queue
// between the core, which must never wait for a client, and a transport, which
// writes one message at a time. Knows no transport.
//
// While one write is under way the next messages join into one. A client that
// does not read for long, or lets too much pile up, is given up: what waits is
// dropped and its request cancelled. If it does not take what was begun either,
// its connection is to be cut.
#ifndef XCACHE_SERVER_FRONTEND_OUTPUT_QUEUE_H_
#define XCACHE_SERVER_FRONTEND_OUTPUT_QUEUE_H_

#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/mutex.h"
#include "server/core/reason.h"
#include "server/core/request.h"
#include "server/frontend/frontend.h"

namespace xcache {

// Thread-safe. Message needs Join(Message more, Message* into), found by its
// namespace.
template <typename Message>
class OutputQueue {
 public:
  OutputQueue(const StreamLimits& limits,
              std::shared_ptr<Cancellation> cancellation)
      : limits_(limits), cancellation_(std::move(cancellation)) {}

  // One more message, of so many bytes. Dropped once the end is set or the
  // reader given up.
  void Push(Message message, size_t bytes) XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (end_set_ || slow_) return;
    if (!queue_.empty() && queue_.back().bytes + bytes <= kMaxJoinedBytes) {
      queue_.back().bytes += bytes;
      Join(std::move(message), &queue_.back().message);
    } else {
      queue_.push_back({std::move(message), bytes});
    }
    queued_bytes_ += bytes;
    if (queued_bytes_ > limits_.queued_bytes) GiveUp();
  }

  // Nothing comes after `last`; `drop`: and nothing of what waits before it.
  void SetEnd(bool drop, std::optional<Message> last) XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (end_set_) return;
    if (drop) Drop();
    if (last.has_value()) queue_.push_back({*std::move(last), 0});
    end_set_ = true;
  }

  // What the transport is to do now: write `message`, end, or both, in one.
  struct Step {
    bool write = false;
    bool end = false;
    Message message{};
  };
  // Nothing while a write is under way, and after the end.
  Step Next() XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    Step step;
    if (writing_ || ended_) return step;
    if (!queue_.empty()) {
      step.message = std::move(queue_.front().message);
      queued_bytes_ -= queue_.front().bytes;
      queue_.pop_front();
      step.write = writing_ = true;
      write_start_ = std::chrono::steady_clock::now();
    }
    if (queue_.empty() && end_set_) step.end = ended_ = true;
    return step;
  }
  // The write has ended. Not `ok`: the client is gone.
  void WriteDone(bool ok) XC_EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      writing_ = false;
      if (!ok) Drop();
    }
    if (!ok) cancellation_->Cancel();
  }

  // To be called now and then. True: the connection is to be cut.
  bool Check(SteadyTime now) XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (!writing_) return false;
    if (now - write_start_ > 2 * limits_.stall) return true;
    if (now - write_start_ > limits_.stall) GiveUp();
    return false;
  }

  bool idle() const XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return !writing_ && queue_.empty();
  }
  bool gave_up() const XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return slow_;
  }

  // A request's status as the client is to hear it: CANCELLED because the
  // reader was given up is the reader's fault.
  absl::Status Explain(const absl::Status& status) const XC_EXCLUDES(mu_) {
    if (!absl::IsCancelled(status) || !gave_up()) return status;
    return WithReason(absl::ResourceExhaustedError(absl::StrCat(
                          "the client does not read its answer: nothing for ",
                          limits_.stall.count(), " ms, or more than ",
                          limits_.queued_bytes, " bytes waiting")),
                      Reason::kSlowReader);
  }

 private:
  // Big enough to join many tokens, small beside a flow-control window.
  static constexpr size_t kMaxJoinedBytes = 16 << 10;

  struct Queued {
    Message message;
    size_t bytes = 0;
  };

  void Drop() XC_REQUIRES(mu_) {
    queue_.clear();
    queued_bytes_ = 0;
  }
  void GiveUp() XC_REQUIRES(mu_) {
    if (slow_ || end_set_) return;
    slow_ = true;
    Drop();
    cancellation_->Cancel();
  }

  const StreamLimits limits_;
  const std::shared_ptr<Cancellation> cancellation_;
  mutable Mutex mu_;
  std::deque<Queued> queue_ XC_GUARDED_BY(mu_);
  size_t queued_bytes_ XC_GUARDED_BY(mu_) = 0;
  bool writing_ XC_GUARDED_BY(mu_) = false;
  SteadyTime write_start_ XC_GUARDED_BY(mu_);
  bool slow_ XC_GUARDED_BY(mu_) = false;
  bool end_set_ XC_GUARDED_BY(mu_) = false;
  bool ended_ XC_GUARDED_BY(mu_) = false;  // the end was given out
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_OUTPUT_QUEUE_H_
