// One engine step: from the requests that may compute to what they sampled.
// Tenants share the step's rows (FairShares), and each one's requests share its
// part, those that decode first; a block that becomes full is sealed, shared
// and given to the store.
//
// REQUIRES: scheduler's thread.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_STEP_BUILDER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_STEP_BUILDER_H_

#include <cstdint>
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
  StepBuilder(const ServerCoreDeps& deps, int step_rows, int64_t max_context,
              RunQueue& queue, WorkingSets& working_sets,
              TurnFinisher& finisher, Rates& rates, FairShares& shares)
      : deps_(deps),
        engine_(*deps.engine),
        metrics_(*deps.metrics),
        step_rows_(step_rows),
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
  // most; `step_rows` in all.
  Step Build() const;

 private:
  // Makes what a request computes with. UNAVAILABLE: not in this step.
  absl::Status Prepare(ActiveRequest& request);
  void Run(Step step);
  // One of them is the reason: each goes on alone, and who then fails again
  // ends.
  void Failed(const Step& step, const absl::Status& status);
  void TakeSealed(ActiveRequest& request);
  void AfterRows(ActiveRequest& request, const StepItem& item, SteadyTime now);
  // The next token, as a grammar allows it, which then is one further.
  absl::StatusOr<SampledToken> Sample(ActiveRequest& request,
                                      const StepItem& item);
  void ScoreRows(ActiveRequest& request, const StepItem& item);
  void PoolRows(ActiveRequest& request, const StepItem& item);

  const ServerCoreDeps deps_;
  Engine& engine_;
  CoreMetrics& metrics_;
  const int64_t step_rows_;
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
