// Who waits and who runs, in which order. Requests enter on any thread, up to
// the queue's limits; the scheduler's thread lets them run in order of arrival,
// and may put one back to its place in front. Knows nothing of what they do.
//
// Of several tenants none fills the queue or the places of those that run: each
// may have so many times as much as it leaves free (kPart), so there is always
// something left for the next one. The next to run is of the tenant that runs
// least, for its weight.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_RUN_QUEUE_H_
#define XCACHE_SERVER_CORE_SCHEDULER_RUN_QUEUE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/request.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/rates.h"

namespace xcache {

class RunQueue {
 public:
  using RequestPtr = std::shared_ptr<ActiveRequest>;

  // `tenants` may be null.
  RunQueue(const ServerCoreOptions& options, CoreMetrics& metrics, Rates& rates,
           TenantLedger* tenants)
      : options_(options),
        metrics_(metrics),
        rates_(rates),
        tenants_(tenants) {}

  // On any thread.

  // RESOURCE_EXHAUSTED: the queue is full, or what a tenant may have of it;
  // UNAVAILABLE: it is closed. What entered is told its end once, and then
  // counted out.
  absl::Status Enter(RequestPtr request) XC_EXCLUDES(mu_);
  void CountOut() XC_EXCLUDES(mu_);
  // Nothing enters from now on.
  void Close() XC_EXCLUDES(mu_);
  // Until all that entered were counted out. False: some are left at `until`.
  bool WaitUntilEmpty(SteadyTime until) XC_EXCLUDES(mu_);
  // How long the queue takes: as long as those took that left it last, and as
  // the first of it has waited already. Where it was always empty, when a place
  // becomes free: a running request ends each service time divided by how many
  // there are.
  int64_t RetryAfterMs() const;
  void FillGauges(CoreGauges* gauges) const XC_EXCLUDES(mu_);

  // On the scheduler's thread.

  // Moves what entered to the end of the queue.
  void TakeEntered() XC_EXCLUDES(mu_);
  const std::deque<RequestPtr>& waiting() const { return waiting_; }
  // By order of admission.
  const std::vector<RequestPtr>& running() const { return running_; }
  bool empty() const { return waiting_.empty() && running_.empty(); }
  // Who is to run next; null: nobody, or not now: there are as many as may run,
  // one of its tenant was put back and none has ended since, or its grammar is
  // not compiled yet.
  ActiveRequest* Next() const;
  // Next() runs. The first time it gets its place in the order.
  void Admit();
  // A running one waits again, before all that came later.
  void PutBack(ActiveRequest& request);
  // Takes a request out, waiting or running.
  RequestPtr Remove(ActiveRequest& request);
  // Rises when a running request ends or is put back: others may go on then.
  uint64_t changes() const { return changes_; }

  // The running request that gives way first, of those that `holds` is true of:
  // the youngest of the tenant that has the most of them, for its weight. Null:
  // there is none.
  ActiveRequest* FirstToGiveWay(
      const std::function<bool(const ActiveRequest&)>& holds) const;

 private:
  struct Waiting {  // never admitted yet
    int64_t requests = 0;
    int64_t tokens = 0;
  };

  // Whether its tenant may have one more request of so many tokens here.
  bool HasRoom(const std::string& tenant, int64_t num_tokens) const
      XC_REQUIRES(mu_);
  std::deque<RequestPtr>::const_iterator NextPlace() const;
  void LeaveQueue(ActiveRequest& request) XC_EXCLUDES(mu_);
  // Tells other threads of the lists.
  void Publish();

  const ServerCoreOptions options_;
  CoreMetrics& metrics_;
  Rates& rates_;
  TenantLedger* const tenants_;

  // Scheduler's thread only.
  std::deque<RequestPtr> waiting_;
  std::vector<RequestPtr> running_;
  uint64_t next_order_ = 0;
  uint64_t changes_ = 0;
  // Tenants of which one was put back, for lack of memory.
  std::set<std::string, std::less<>> held_;

  mutable Mutex mu_;
  CondVar counted_out_;
  std::vector<RequestPtr> entered_ XC_GUARDED_BY(mu_);
  bool closed_ XC_GUARDED_BY(mu_) = false;
  int64_t num_waiting_ XC_GUARDED_BY(mu_) = 0;  // never admitted yet
  int64_t waiting_tokens_ XC_GUARDED_BY(mu_) = 0;
  std::map<std::string, Waiting, std::less<>> waiting_by_tenant_
      XC_GUARDED_BY(mu_);
  int64_t num_open_ XC_GUARDED_BY(mu_) = 0;  // entered, not counted out
  std::atomic<uint64_t> num_running_{0};
  // When the first of the queue was submitted; the epoch: nobody waits.
  std::atomic<SteadyTime> oldest_waiting_{SteadyTime()};
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_RUN_QUEUE_H_
