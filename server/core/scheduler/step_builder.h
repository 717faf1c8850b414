// One engine step: from the requests that may compute to what they sampled.
// Tenants share the step's rows (FairShares), and each one's requests share its
// part, those that decode first; a block that becomes full is sealed, shared
// and given to the store.
//
// REQUIRES: scheduler's thread.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_STEP_BUILDER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_STEP_BUILDER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/core/core_options.h"
#include "server/core/request.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/fair_shares.h"
#include "server/core/scheduler/rates.h"
#include "server/core/scheduler/run_queue.h"
#include "server/core/scheduler/turn_finisher.h"
#include "server/core/scheduler/working_sets.h"

namespace xcache {

class StepBuilder {
 public:
  // `max_context`: tokens where an answer ends.
  StepBuilder(const ServerCoreDeps& deps, const ServerCoreOptions& options,
              int64_t max_context, RunQueue& queue, WorkingSets& working_sets,
              TurnFinisher& finisher, Rates& rates, FairShares& shares)
      : deps_(deps),
        engine_(*deps.engine),
        metrics_(*deps.metrics),
        step_rows_(options.step_rows),
        draft_(options.draft),
        max_context_(max_context),
        queue_(queue),
        working_sets_(working_sets),
        finisher_(finisher),
        rates_(rates),
        shares_(shares) {}

  struct Step {
    std::vector<RunQueue::RequestPtr> requests;
    std::vector<StepItem> items;  // one for each of them
    std::vector<FairShares::Part> parts;
  };

  // Builds a step and runs it. False: nobody has anything to compute.
  bool Compute();

  // The step of those that may compute, memory having been reserved for them:
  // of each tenant's part a row for each that decodes, who had none for longest
  // first, then prompts' tokens by order of admission, to the end of a block at
  // most, then drafts; `step_rows` in all.
  Step Build() const;

 private:
  // Drafts what those that decode may say next, as much of it as makes tokens
  // sooner than steps without it: a row of a draft is worth its time if that
  // gives a token more often than the step does on the average. What a row and
  // the step take is measured (StepCost), how often it gives one too (Drafter).
  // A draft ends before its block does, so none of it is ever sealed.
  void Draft(std::span<const RunQueue::RequestPtr> ready) const;
  // Makes what a request computes with. UNAVAILABLE: not in this step.
  absl::Status Prepare(ActiveRequest& request);
  void Run(Step step);
  // One of them is the reason: each goes on alone and without a draft, and who
  // then fails again ends.
  void Failed(const Step& step, const absl::Status& status);
  void TakeSealed(ActiveRequest& request);
  // How many tokens the answer has got.
  int64_t AfterRows(ActiveRequest& request, const StepItem& item,
                    SteadyTime now);
  // One of them; kNone: the answer goes on.
  FinishReason TakeToken(ActiveRequest& request, const SampledToken& token,
                         SteadyTime now);
  // The next token, as a grammar allows it, which then is one further.
  absl::StatusOr<SampledToken> Sample(ActiveRequest& request,
                                      std::span<const float> logits);
  void ScoreRows(ActiveRequest& request, const StepItem& item);
  void PoolRows(ActiveRequest& request, const StepItem& item);

  const ServerCoreDeps deps_;
  Engine& engine_;
  CoreMetrics& metrics_;
  const int64_t step_rows_;
  const decltype(ServerCoreOptions::draft) draft_;
  const int64_t max_context_;
  RunQueue& queue_;
  WorkingSets& working_sets_;
  TurnFinisher& finisher_;
  Rates& rates_;
  FairShares& shares_;
  uint64_t num_steps_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_STEP_BUILDER_H_
