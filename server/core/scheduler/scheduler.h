// Continuous batching: the one thread that owns the engine. Admits requests
// from a bounded queue, reuses prefixes, builds each step from all decoding
// sequences and chunks of prompts, samples, delivers, and hands finished turns
// to the committers. Sessions' rules are SessionManager's, reuse is
// PrefixPlanner's.
//
// Public methods are thread-safe.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_SCHEDULER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_SCHEDULER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/cache_store.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/core/cache/blocks.h"
#include "server/core/cache/codec_table.h"
#include "server/core/cache/idle_sets.h"
#include "server/core/core_metrics.h"
#include "server/core/request.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/prefix_planner.h"
#include "server/core/scheduler/rates.h"
#include "server/core/scheduler/work_queue.h"
#include "server/core/server_core.h"

namespace xcache {

class Scheduler {
 public:
  // `max_context` is the effective one. Start() starts the thread.
  Scheduler(const ServerCoreDeps& deps, const ServerCoreOptions& options,
            int64_t max_context, CodecTable& codecs, CoreMetrics& metrics);
  ~Scheduler() { Stop(); }

  void Start();
  // Ends every request with UNAVAILABLE and the threads. Idempotent.
  void Stop();

  // Takes a request whose prompt is complete, or finishes it at once: queue
  // full, draining.
  void Submit(std::shared_ptr<ActiveRequest> request) XC_EXCLUDES(mu_);
  // Ends a request that was never taken.
  void Refuse(ActiveRequest& request, const absl::Status& status);
  void Wake() XC_EXCLUDES(mu_);
  // Runs `work` on the scheduler's thread and waits for it. False: stopped, not
  // run.
  bool Run(std::function<void()> work) XC_EXCLUDES(mu_);

  // Opens a codec; waits for the scheduler's thread.
  absl::StatusOr<CodecRef> OpenCodec(std::string_view spec);
  // A session has been given this policy.
  void CountRemat(RematPolicy policy);
  // Drops what a session left in memory, and the blocks of these keys where
  // nobody uses them.
  void DropSession(const SessionKey& key, std::span<const PageKey> blocks);
  bool InMemory(const SessionKey& key) const { return idle_.Contains(key); }

  // See ServerCore::Drain.
  int Drain(SteadyTime deadline) XC_EXCLUDES(mu_);
  void FillGauges(CoreGauges* gauges) const XC_EXCLUDES(mu_);

 private:
  struct LoadResult {
    uint64_t request_id = 0;
    std::shared_ptr<std::atomic<bool>>
        load_ended;  // which load of the request's
    std::vector<RestoreSlot> pages;
    PageKey failed_key{};
    absl::Status status;  // of the page after the last one that was read
  };

  // scheduler.cc: the loop, admission, endings.
  void Loop();
  bool TakeInbox();
  void EndCancelled();
  void Admit();
  absl::Status AdmitRequest(ActiveRequest& request);
  absl::StatusOr<CodecRef> OpenCodecHere(std::string_view spec);
  void WaitForWork();
  absl::Status WhyToEnd(const ActiveRequest& request, SteadyTime now) const;
  void LeaveQueue(const ActiveRequest& request) XC_EXCLUDES(mu_);
  std::shared_ptr<ActiveRequest> RemoveRunning(const ActiveRequest& request);
  void FinishGeneration(ActiveRequest& request, FinishReason reason);
  void FinishScore(ActiveRequest& request);
  void Fail(ActiveRequest& request, const absl::Status& status);
  // Fails it, but for lack of memory in the middle of an answer, which ends
  // there: the same turn would come no further.
  void FailOrCut(ActiveRequest& request, const absl::Status& status);
  void Commit(std::shared_ptr<ActiveRequest> request, SessionRecord next);
  void Report(ActiveRequest& request, const absl::Status& status);
  void LeaveBehind(ActiveRequest& request);
  void TruncateToHistory(ActiveRequest& request,
                         std::span<const TokenId> history);
  int64_t RetryAfterMs() const;

  // scheduler_memory.cc: rule R5.
  std::optional<MemoryReservation> Reserve(ActiveRequest& request,
                                           int64_t bytes);
  // Gives back what a block that is kept as codes takes less than K/V.
  static void ShrinkTo(const KvBlock& block, MemoryReservation* memory);
  void Preempt(ActiveRequest& request);
  int64_t Reclaim(int64_t wanted_bytes, bool all);
  // The engine had no room on its device and has changed nothing. True: some
  // was made, try again.
  bool MakeRoomOnDevice();
  void DropWantedIdle();

  // scheduler_step.cc: planning, restoring, computing.
  bool PlanAndRestore();
  void StartLoad(ActiveRequest& request, std::vector<PageKey> keys);
  LoadResult Load(uint64_t request_id,
                  const std::shared_ptr<std::atomic<bool>>& load_ended,
                  std::span<const PageKey> keys);
  void TakeLoad(LoadResult result);
  void LoadFailed(ActiveRequest& request, const PageKey& key,
                  const absl::Status& status);
  void EndRestore(ActiveRequest& request);
  bool RestoreSlice(ActiveRequest& request);
  int64_t MaxSlice() const;
  static std::vector<RematJob> NextRemats(const ActiveRequest& request,
                                          int64_t most);
  void StageSlice(ActiveRequest& request);
  bool Compute();
  // Makes ready what a request needs to be computed with. False: not in this
  // step.
  bool Prepare(ActiveRequest& request);
  void RunStep(std::span<ActiveRequest* const> requests,
               std::span<StepItem> items);
  void TakeSealed(ActiveRequest& request);
  void AfterRows(ActiveRequest& request, const StepItem& item, SteadyTime now);
  void ScoreRows(ActiveRequest& request, const StepItem& item);

  const ServerCoreDeps deps_;
  const ServerCoreOptions options_;
  const int64_t max_context_;
  CodecTable& codecs_;
  CoreMetrics& metrics_;
  Engine& engine_;
  Rates rates_;
  BlockCache cache_;
  IdleSets idle_;
  PrefixPlanner planner_;
  MemoryBudget::Registration reclaim_first_, reclaim_last_;
  std::atomic<int64_t> wanted_idle_bytes_{0};
  std::atomic<std::thread::id> thread_id_;

  // Scheduler's thread only.
  std::deque<std::shared_ptr<ActiveRequest>> queue_;
  std::vector<std::shared_ptr<ActiveRequest>>
      running_;  // by order of admission
  uint64_t next_order_ = 0;
  bool progress_ = false;        // this iteration changed what may run
  bool hold_admission_ = false;  // something was preempted for lack of memory

  mutable Mutex mu_;
  CondVar changed_;   // for the scheduler
  CondVar finished_;  // for Drain
  std::vector<std::shared_ptr<ActiveRequest>> submitted_ XC_GUARDED_BY(mu_);
  std::vector<LoadResult> loads_ XC_GUARDED_BY(mu_);
  std::vector<std::function<void()>> tasks_ XC_GUARDED_BY(mu_);
  bool woken_ XC_GUARDED_BY(mu_) = false;
  bool draining_ XC_GUARDED_BY(mu_) = false;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  bool stopped_ XC_GUARDED_BY(mu_) = false;  // the loop has ended
  int64_t num_waiting_ XC_GUARDED_BY(mu_) = 0;
  int64_t waiting_tokens_ XC_GUARDED_BY(mu_) = 0;
  int64_t num_open_ XC_GUARDED_BY(mu_) = 0;  // submitted, not reported
  std::atomic<bool> end_all_{false};
  std::atomic<int> num_ended_{0};
  std::atomic<uint64_t> num_running_{0};
  // When the first of the queue was submitted; the epoch: nobody waits.
  std::atomic<SteadyTime> oldest_waiting_{SteadyTime()};

  // Last, so that they stop before what they use goes.
  WorkQueue loaders_;
  WorkQueue committers_;
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_SCHEDULER_H_
