// Continuous batching: the one thread that owns the engine, and its loop. Each
// round ends who is cancelled, admits who may run, restores a slice of a prefix
// and computes a step. How is its parts' business: RunQueue (order), Restorer
// (prefixes), StepBuilder (steps), TurnFinisher (endings), WorkingSets
// (memory), FairShares (tenants).
//
// Public methods are thread-safe.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_SCHEDULER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_SCHEDULER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/core/cache/codec_table.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/request.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/fair_shares.h"
#include "server/core/scheduler/rates.h"
#include "server/core/scheduler/restorer.h"
#include "server/core/scheduler/run_queue.h"
#include "server/core/scheduler/step_builder.h"
#include "server/core/scheduler/turn_finisher.h"
#include "server/core/scheduler/working_sets.h"

namespace xcache {

class Scheduler {
 public:
  // `max_context` is the effective one. Start() starts the thread.
  Scheduler(const ServerCoreDeps& deps, const ServerCoreOptions& options,
            int64_t max_context, CodecTable& codecs);
  ~Scheduler() { Stop(); }

  void Start();
  // Ends every request with UNAVAILABLE and the threads. Idempotent.
  void Stop();

  // Takes a request whose prompt is complete, or ends it at once: queue full,
  // its tenant at a limit, draining.
  void Submit(const std::shared_ptr<ActiveRequest>& request);
  // Ends a request that was never taken.
  void Refuse(ActiveRequest& request, const absl::Status& status) {
    finisher_.Refuse(request, status);
  }
  void Wake() XC_EXCLUDES(mu_);

  // Opens a codec; waits for the scheduler's thread.
  absl::StatusOr<CodecRef> OpenCodec(std::string_view spec);
  // Drops what a session left in memory, and the blocks of these keys where
  // nobody uses them.
  void DropSession(const SessionKey& key, std::span<const PageKey> blocks);
  bool InMemory(const SessionKey& key) const {
    return working_sets_.InMemory(key);
  }

  // See ServerCore::Drain.
  int Drain(SteadyTime deadline);
  void FillGauges(CoreGauges* gauges) const;

 private:
  // Runs `work` on the scheduler's thread and waits for it. False: stopped, not
  // run.
  bool RunThere(std::function<void()> work) XC_EXCLUDES(mu_);
  void Loop();
  // False: stopped, and nothing is left to do.
  bool TakeInbox() XC_EXCLUDES(mu_);
  void EndCancelled();
  absl::Status WhyToEnd(const ActiveRequest& request, SteadyTime now) const;
  void Admit();
  // Tokens and page bytes that the request may come to, of its tenant's limits.
  absl::Status TakeLimits(ActiveRequest& request);
  // Opens the request's codec. What it will take must fit.
  absl::Status CheckAdmission(ActiveRequest& request);
  absl::StatusOr<CodecRef> OpenCodecHere(std::string_view spec);
  void WaitForWork() XC_EXCLUDES(mu_);

  const ServerCoreDeps deps_;
  Engine& engine_;
  CodecTable& codecs_;
  const int64_t max_context_;
  Rates rates_;
  FairShares shares_;

  Mutex mu_;
  CondVar changed_;
  std::vector<std::function<void()>> tasks_ XC_GUARDED_BY(mu_);
  bool woken_ XC_GUARDED_BY(mu_) = false;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::atomic<bool> end_all_{false};
  std::atomic<int> num_ended_{0};

  // In this order: each uses those before it, and stops its threads first.
  RunQueue queue_;
  WorkingSets working_sets_;
  TurnFinisher finisher_;
  Restorer restorer_;
  StepBuilder step_builder_;
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_SCHEDULER_H_
