#include "server/core/scheduler/run_queue.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

auto Is(const ActiveRequest& request) {
  return [&request](const auto& other) { return other.get() == &request; };
}

}  // namespace

absl::Status RunQueue::Enter(RequestPtr request) {
  const auto num_tokens = static_cast<int64_t>(request->tokens.size());
  request->submitted = steady_clock::now();
  MutexLock lock(mu_);
  if (closed_) return ShuttingDown();
  if (num_waiting_ >= options_.max_queue_requests ||
      (num_waiting_ > 0 &&
       waiting_tokens_ + num_tokens > options_.max_queue_tokens)) {
    metrics_.Add(CoreCounter::kQueueRejections, 1);
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "the queue is full: ", num_waiting_, " requests of at most ",
            options_.max_queue_requests, ", ", waiting_tokens_,
            " tokens of at most ", options_.max_queue_tokens)),
        Reason::kQueueFull);
  }
  ++num_waiting_;
  waiting_tokens_ += num_tokens;
  ++num_open_;
  entered_.push_back(std::move(request));
  return absl::OkStatus();
}

void RunQueue::CountOut() {
  MutexLock lock(mu_);
  --num_open_;
  counted_out_.SignalAll();
}

void RunQueue::Close() {
  MutexLock lock(mu_);
  closed_ = true;
}

bool RunQueue::WaitUntilEmpty(SteadyTime until) {
  MutexLock lock(mu_);
  while (num_open_ > 0) {
    const SteadyTime now = steady_clock::now();
    if (now >= until) return false;
    counted_out_.WaitFor(mu_, std::min<steady_clock::duration>(
                                  until - now, std::chrono::hours(1)));
  }
  return true;
}

int64_t RunQueue::RetryAfterMs() const {
  const Rates::Values rates = rates_.values();
  const auto running = static_cast<double>(std::max<uint64_t>(1, num_running_));
  const SteadyTime oldest = oldest_waiting_;
  const double waited = oldest == SteadyTime()
                            ? 0.0
                            : SecondsBetween(oldest, steady_clock::now());
  const double measured =
      std::max({rates.queue, waited, rates.service / running});
  return measured > 0
             ? static_cast<int64_t>(std::ceil(1000 * std::max(0.01, measured)))
             : 1000;
}

void RunQueue::FillGauges(CoreGauges* gauges) const {
  gauges->running = num_running_;
  MutexLock lock(mu_);
  gauges->waiting = static_cast<uint64_t>(num_waiting_);
  gauges->waiting_tokens = static_cast<uint64_t>(waiting_tokens_);
}

void RunQueue::TakeEntered() {
  {
    MutexLock lock(mu_);
    waiting_.insert(waiting_.end(), entered_.begin(), entered_.end());
    entered_.clear();
  }
  Publish();
}

ActiveRequest* RunQueue::Next() const {
  if (waiting_.empty()) return nullptr;
  const bool full = static_cast<int>(running_.size()) >= options_.max_running ||
                    (hold_ && !running_.empty());
  return full ? nullptr : waiting_.front().get();
}

void RunQueue::Admit() {
  RequestPtr request = std::move(waiting_.front());
  waiting_.pop_front();
  LeaveQueue(*request);
  if (!request->preempted) {
    request->admitted = steady_clock::now();
    request->order = ++next_order_;
    request->final.timings.queue_us =
        MicrosBetween(request->submitted, request->admitted);
    const double queued = SecondsBetween(request->submitted, request->admitted);
    rates_.AddQueue(queued);
    metrics_.Observe(CoreHistogram::kQueue, queued);
  }
  request->state = RequestState::kReady;
  const auto place = std::find_if(
      running_.begin(), running_.end(),
      [&](const auto& other) { return other->order > request->order; });
  running_.insert(place, std::move(request));
  Publish();
}

void RunQueue::PutBack(ActiveRequest& request) {
  const auto it = std::find_if(running_.begin(), running_.end(), Is(request));
  RequestPtr owner = std::move(*it);
  running_.erase(it);
  owner->preempted = true;
  owner->state = RequestState::kQueued;
  const auto place =
      std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& other) {
        return !other->preempted || other->order > request.order;
      });
  waiting_.insert(place, std::move(owner));
  hold_ = true;
  ++changes_;
  Publish();
}

RunQueue::RequestPtr RunQueue::Remove(ActiveRequest& request) {
  RequestPtr owner;
  if (request.state == RequestState::kQueued) {
    const auto it = std::find_if(waiting_.begin(), waiting_.end(), Is(request));
    LeaveQueue(request);
    owner = std::move(*it);
    waiting_.erase(it);
  } else {
    const auto it = std::find_if(running_.begin(), running_.end(), Is(request));
    owner = std::move(*it);
    running_.erase(it);
    hold_ = false;
    rates_.AddService(SecondsBetween(request.admitted, steady_clock::now()));
  }
  owner->state = RequestState::kDone;
  ++changes_;
  Publish();
  return owner;
}

void RunQueue::LeaveQueue(const ActiveRequest& request) {
  if (request.preempted) return;  // was counted out when it was admitted
  MutexLock lock(mu_);
  --num_waiting_;
  waiting_tokens_ -= static_cast<int64_t>(request.tokens.size());
}

void RunQueue::Publish() {
  num_running_ = running_.size();
  const auto first =
      std::find_if(waiting_.begin(), waiting_.end(),
                   [](const auto& request) { return !request->preempted; });
  oldest_waiting_ =
      first == waiting_.end() ? SteadyTime() : (*first)->submitted;
}

}  // namespace xcache
