// How requests end: answered, failed or refused, and what becomes of the
// session's turn (rule R4). An answered turn's manifest is synced by committers
// before its last message is sent; one that failed leaves its session as it
// was. Either way the rows that are still right stay for the next turn.
//
// REQUIRES: scheduler's thread, unless said otherwise. The request has left the
// RunQueue when a method returns.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_TURN_FINISHER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_TURN_FINISHER_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "cachestore/sessions/session_record.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/request.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/run_queue.h"
#include "server/core/scheduler/work_queue.h"
#include "server/core/scheduler/working_sets.h"

namespace xcache {

class TurnFinisher {
 public:
  TurnFinisher(const ServerCoreDeps& deps, int commit_threads, RunQueue& queue,
               WorkingSets& working_sets)
      : deps_(deps),
        metrics_(*deps.metrics),
        queue_(queue),
        working_sets_(working_sets),
        committers_(commit_threads) {}

  // The answer ends here. Of a session its turn is committed; the last message
  // says how far: kLocal, kMemory, or why it was not kept.
  void Finish(ActiveRequest& request, FinishReason reason);
  // Of what has no answer: a score, an embedding.
  void FinishWhole(ActiveRequest& request);
  // Rolls the turn back.
  void Fail(ActiveRequest& request, const absl::Status& status);
  // Fails it, but for lack of memory in the middle of an answer, which ends
  // there (kContext): the same turn would come no further.
  void FailOrCut(ActiveRequest& request, const absl::Status& status);

  // On any thread: ends a request that never entered the queue.
  void Refuse(ActiveRequest& request, const absl::Status& status);
  // Waits for commits under way. Idempotent.
  void Stop() { committers_.Stop(); }

 private:
  RunQueue::RequestPtr Remove(ActiveRequest& request);
  // The session's record with this turn in it.
  SessionRecord NextRecord(ActiveRequest& request,
                           std::vector<TokenId> history);
  // Has the answer known where it is to be. `history`: up to its end.
  void Remember(const ActiveRequest& request, std::span<const TokenId> history);
  void Commit(RunQueue::RequestPtr request, SessionRecord next);
  void Report(ActiveRequest& request, const absl::Status& status);

  const ServerCoreDeps deps_;
  CoreMetrics& metrics_;
  RunQueue& queue_;
  WorkingSets& working_sets_;
  WorkQueue committers_;  // last: it stops before what it uses goes
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_TURN_FINISHER_H_
