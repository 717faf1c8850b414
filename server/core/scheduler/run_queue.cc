#include "server/core/scheduler/run_queue.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/core/reason.h"
#include "server/core/tenants/take.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// What one of several tenants may have, as a multiple of what it leaves free:
// alone seven eighths, two of them seven fifteenths each.
constexpr double kPart = 7;

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
  const std::string& tenant = request->base.tenant;
  if (!HasRoom(tenant, num_tokens)) {
    metrics_.Add(CoreCounter::kQueueRejections, 1);
    const Waiting& mine = waiting_by_tenant_[tenant];
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "the queue is full for tenant '", tenant,
            "', others may come: ", mine.requests, " requests of it wait and ",
            options_.max_queue_requests - num_waiting_, " places are free, ",
            mine.tokens, " tokens and ",
            options_.max_queue_tokens - waiting_tokens_, " are free")),
        Reason::kQueueFull);
  }
  XC_ASSIGN_OR_RETURN(
      request->queued_tokens,
      Take(tenants_, tenant, TenantLimit::kQueuedTokens, num_tokens));
  Waiting& mine = waiting_by_tenant_[tenant];
  ++mine.requests;
  mine.tokens += num_tokens;
  ++num_waiting_;
  waiting_tokens_ += num_tokens;
  ++num_open_;
  entered_.push_back(std::move(request));
  return absl::OkStatus();
}

bool RunQueue::HasRoom(const std::string& tenant, int64_t num_tokens) const {
  if (tenants_ == nullptr || !tenants_->has_several()) return true;
  const auto it = waiting_by_tenant_.find(tenant);
  if (it == waiting_by_tenant_.end()) return true;
  const double part = kPart * static_cast<double>(WeightOf(tenants_, tenant));
  const int64_t tokens = it->second.tokens + num_tokens;
  const auto free_places =
      static_cast<double>(options_.max_queue_requests - num_waiting_);
  const auto free_tokens = static_cast<double>(options_.max_queue_tokens -
                                               waiting_tokens_ - num_tokens);
  return static_cast<double>(it->second.requests) < part * free_places &&
         static_cast<double>(tokens) <= part * free_tokens;
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
  const auto place = NextPlace();
  return place == waiting_.end() ? nullptr : place->get();
}

std::deque<RunQueue::RequestPtr>::const_iterator RunQueue::NextPlace() const {
  const auto num_running = static_cast<int>(running_.size());
  if (num_running >= options_.max_running) return waiting_.end();
  const auto free = static_cast<double>(options_.max_running - num_running);
  const bool several = tenants_ != nullptr && tenants_->has_several();
  std::map<std::string_view, double> run;  // for a tenant's weight
  for (const RequestPtr& request : running_) run[request->base.tenant] += 1;
  for (auto& [tenant, n] : run) {
    n /= static_cast<double>(WeightOf(tenants_, tenant));
  }
  auto best = waiting_.end();
  double least = 0;
  std::set<std::string_view> seen;
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    const std::string& tenant = (*it)->base.tenant;
    if ((*it)->grammar != nullptr && !(*it)->grammar->ready()) continue;
    if (!seen.insert(tenant).second) continue;
    if (held_.contains(tenant) && num_running > 0) continue;
    const auto mine = run.find(tenant);
    const double n = mine == run.end() ? 0 : mine->second;
    if (several && n >= kPart * free) continue;
    if (best == waiting_.end() || n < least) {
      best = it;
      least = n;
    }
  }
  return best;
}

void RunQueue::Admit() {
  const auto next = NextPlace();
  RequestPtr request = *next;
  waiting_.erase(next);
  LeaveQueue(*request);
  if (!request->preempted) {
    request->minute_tokens.Spend(request->asked_tokens());
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
  held_.insert(request.base.tenant);
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
    held_.clear();
    rates_.AddService(SecondsBetween(request.admitted, steady_clock::now()));
  }
  owner->state = RequestState::kDone;
  ++changes_;
  Publish();
  return owner;
}

ActiveRequest* RunQueue::FirstToGiveWay(
    const std::function<bool(const ActiveRequest&)>& holds) const {
  struct OfTenant {
    double holders = 0;
    ActiveRequest* youngest = nullptr;
  };
  std::map<std::string_view, OfTenant> tenants;
  for (const RequestPtr& request : running_) {
    if (!holds(*request)) continue;
    OfTenant& mine = tenants[request->base.tenant];
    mine.holders += 1;
    mine.youngest = request.get();
  }
  ActiveRequest* first = nullptr;
  double most = 0;
  for (const auto& [tenant, mine] : tenants) {
    const double n =
        mine.holders / static_cast<double>(WeightOf(tenants_, tenant));
    if (first == nullptr || n > most ||
        (n == most && mine.youngest->order > first->order)) {
      first = mine.youngest;
      most = n;
    }
  }
  return first;
}

void RunQueue::LeaveQueue(ActiveRequest& request) {
  if (request.preempted) return;  // was counted out when it was admitted
  request.queued_tokens = TenantHold();
  const auto num_tokens = static_cast<int64_t>(request.tokens.size());
  MutexLock lock(mu_);
  --num_waiting_;
  waiting_tokens_ -= num_tokens;
  const auto mine = waiting_by_tenant_.find(request.base.tenant);
  mine->second.tokens -= num_tokens;
  if (--mine->second.requests == 0) waiting_by_tenant_.erase(mine);
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
