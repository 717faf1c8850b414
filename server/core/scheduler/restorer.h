// Prefixes of running requests: what each does next at a block boundary is
// planned (PrefixPlanner), pages are read by loaders, and those that are there
// are rematerialized in slices between steps, so that neither a disk nor a long
// history holds up who is decoding. What cannot be read is computed, and is
// counted (rule R3).
//
// REQUIRES: scheduler's thread.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_RESTORER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_RESTORER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "cachestore/page_key.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/fair_shares.h"
#include "server/core/scheduler/prefix_planner.h"
#include "server/core/scheduler/rates.h"
#include "server/core/scheduler/remote_pages.h"
#include "server/core/scheduler/run_queue.h"
#include "server/core/scheduler/turn_finisher.h"
#include "server/core/scheduler/work_queue.h"
#include "server/core/scheduler/working_sets.h"

namespace xcache {

class Restorer {
 public:
  // `wake` is called on a loader's thread when there is something for
  // TakeLoaded().
  Restorer(const ServerCoreDeps& deps, const ServerCoreOptions& options,
           RunQueue& queue, WorkingSets& working_sets, TurnFinisher& finisher,
           Rates& rates, FairShares& shares, std::function<void()> wake);

  // Gives requests the pages that were read for them.
  void TakeLoaded() XC_EXCLUDES(mu_);
  // Says of every running request whether it may compute now
  // (ActiveRequest::may_compute), has pages read for those that want some, and
  // rematerializes a slice of the oldest that has some, of the tenant that is
  // behind, as far as others wait for a token. Returns whether it did.
  bool PlanAndRestore();
  RemotePages& remote() { return remote_; }
  // Waits for reads under way. Idempotent.
  void Stop() { loaders_.Stop(); }

 private:
  struct Loaded {
    uint64_t request_id = 0;
    std::shared_ptr<std::atomic<bool>> load_ended;  // which of its loads
    std::vector<RestoreSlot> pages;
    PageKey failed_key{};
    absl::Status status;  // of the page after the last one that was read
  };

  void StartLoad(ActiveRequest& request, std::vector<PageKey> keys);
  // On a loader's thread.
  void Load(Loaded loaded, std::span<const PageKey> keys) XC_EXCLUDES(mu_);
  void Take(Loaded loaded);
  void LoadFailed(ActiveRequest& request, const PageKey& key,
                  const absl::Status& status);
  void EndRestore(ActiveRequest& request);
  bool RestoreSlice(ActiveRequest& request);
  // Who is to rematerialize now; null: nobody.
  RunQueue::RequestPtr NextToRestore() const;
  // The tenants of the next step.
  std::vector<FairShares::Part> NextParts() const;
  int64_t MaxSlice(const ActiveRequest& request) const;
  // Pages of the next slice travel to the device beside the step that comes
  // before it.
  void StageSlice(ActiveRequest& request);

  Engine& engine_;
  PageStore& pages_;
  CoreMetrics& metrics_;
  RunQueue& queue_;
  WorkingSets& working_sets_;
  TurnFinisher& finisher_;
  Rates& rates_;
  FairShares& shares_;
  const std::function<void()> wake_;
  RemotePages remote_;
  PrefixPlanner planner_;

  Mutex mu_;
  std::vector<Loaded> loaded_ XC_GUARDED_BY(mu_);
  WorkQueue loaders_;  // last: it stops before what it uses goes
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_RESTORER_H_
