// What a request does next at a block boundary of its prompt: take the block
// from the working sets, wait for the request that is making it, have pages
// read, wait for one on its way from the shared tier, or compute. Decides;
// moves no page and runs no step. Scheduler's thread only.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_PREFIX_PLANNER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_PREFIX_PLANNER_H_

#include <cstdint>
#include <vector>

#include "cachestore/page_key.h"
#include "cachestore/page_store.h"
#include "engine/engine.h"
#include "server/core/cache/blocks.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/flights.h"
#include "server/core/scheduler/rates.h"
#include "server/core/scheduler/remote_pages.h"
#include "server/core/scheduler/working_sets.h"

namespace xcache {

class PrefixPlanner {
 public:
  enum class Action {
    kCompute,  // forward the next tokens
    kWait,     // another request is making the next block
    kLoad,     // read the pages named by `load`
    kAwait,    // the next page is on its way from the shared tier
  };
  struct Plan {
    Action action = Action::kCompute;
    std::vector<PageKey> load;
  };

  PrefixPlanner(const ModelInfo& model, WorkingSets& working_sets,
                const PageStore& pages, RemotePages& remote, Rates& rates,
                CoreMetrics& metrics, ServerCoreOptions::Restore restore)
      : model_(model),
        cache_(working_sets.blocks()),
        flights_(working_sets.flights()),
        pages_(pages),
        remote_(remote),
        rates_(rates),
        metrics_(metrics),
        restore_(restore) {}

  // Takes what blocks of `request` are in memory (which drops its sequence: it
  // is to be made anew from its blocks), then says what comes next. Blocks that
  // are to be computed or loaded are entered as `request`'s flights.
  Plan Next(ActiveRequest& request);

 private:
  Plan NextHere(ActiveRequest& request);
  void FindWholeFrom(ActiveRequest& request) const;
  // False: all that its next row sees is there.
  bool LetGoOfPartial(ActiveRequest& request);
  std::vector<PageKey> PagesFrom(ActiveRequest& request,
                                 int64_t first_block) const;
  bool PreferRestore(const std::vector<PageKey>& pages);

  const ModelInfo& model_;
  BlockCache& cache_;
  Flights& flights_;
  const PageStore& pages_;
  RemotePages& remote_;
  Rates& rates_;
  CoreMetrics& metrics_;
  const ServerCoreOptions::Restore restore_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_PREFIX_PLANNER_H_
