// Memory of working sets (rule R5): reserved before it is used. What has to
// give way goes in this order: blocks that nobody holds and idle sessions'
// sequences, the least recently used first; then the youngest running request
// of the tenant that has the most of them, which waits and goes on later from
// its pages and tokens, so the oldest always gets on. Moves no page and runs no
// step.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_WORKING_SETS_H_
#define XCACHE_SERVER_CORE_SCHEDULER_WORKING_SETS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/memory_budget.h"
#include "engine/engine.h"
#include "server/core/cache/blocks.h"
#include "server/core/cache/idle_sets.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/flights.h"
#include "server/core/scheduler/run_queue.h"

namespace xcache {

class WorkingSets {
 public:
  // `wake` is called, on any thread, when DropWanted() has something to do.
  WorkingSets(const ServerCoreDeps& deps, RunQueue& queue,
              std::function<void()> wake);

  // On any thread.
  bool InMemory(const SessionKey& key) const { return idle_.Contains(key); }
  void FillGauges(CoreGauges* gauges) const;

  // On the scheduler's thread: this is it. First of all, but for the above.
  void BindThread() { thread_id_ = std::this_thread::get_id(); }

  BlockCache& blocks() { return blocks_; }
  Flights& flights() { return flights_; }

  // Memory for `request`, which runs. UNAVAILABLE: it cannot go on now, was put
  // back or is to try again; RESOURCE_EXHAUSTED: it never will, there being
  // nobody else to wait for.
  absl::StatusOr<MemoryReservation> Reserve(ActiveRequest& request,
                                            int64_t bytes);
  // Gives back what a block that is kept as codes takes less than K/V.
  static void ShrinkTo(const KvBlock& block, MemoryReservation* memory);
  // The engine had no room on its device and has changed nothing. True: some
  // was made, try again.
  bool MakeRoomOnDevice();
  // Idle sessions make room for what is not a working set. False: there are
  // none.
  bool MakeRoomFor(int64_t bytes);
  // The one used longest ago. False: there is none.
  bool DropOldestIdle() { return idle_.DropOldest() > 0; }
  // What other threads reserved in vain.
  void DropWanted();
  // What a session left behind, and the blocks of these keys that nobody holds.
  void Drop(const SessionKey& key, std::span<const PageKey> blocks);
  void DropAllIdle() { idle_.DropAll(); }

  // Takes what the request's session left behind, as far as its prompt is that.
  void TakeIdle(ActiveRequest& request);
  // Keeps what the request has for its session's next turn; without a session,
  // and with no_cache, its blocks alone, for whoever asks for them.
  void LeaveBehind(ActiveRequest& request);
  // Forgets rows from where the request's sequence is not `history`.
  void TruncateTo(ActiveRequest& request, std::span<const TokenId> history);
  // The request makes no more blocks: who waits for one of them plans again.
  void EndMaking(ActiveRequest& request);

 private:
  int64_t used_bytes() const;
  // What the budget calls, on whatever thread reserves.
  int64_t Reclaim(int64_t wanted_bytes, bool all);
  void Preempt(ActiveRequest& request);

  Engine& engine_;
  MemoryBudget& memory_;
  CoreMetrics& metrics_;
  RunQueue& queue_;
  const std::function<void()> wake_;
  BlockCache blocks_;
  IdleSets idle_;
  Flights flights_;
  std::atomic<int64_t> wanted_idle_bytes_{0};
  std::atomic<std::thread::id> thread_id_;
  MemoryBudget::Registration reclaim_first_, reclaim_last_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_WORKING_SETS_H_
