// What a request does next at a block boundary of its prompt: take the block
// from the working sets, wait for the request that is making it, have pages
// read, or compute. Decides; moves no page and runs no step. Scheduler's thread
// only.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_PREFIX_PLANNER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_PREFIX_PLANNER_H_

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "cachestore/page_key.h"
#include "cachestore/page_store.h"
#include "server/core/cache/blocks.h"
#include "server/core/core_metrics.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/rates.h"
#include "server/core/server_core.h"

namespace xcache {

class PrefixPlanner {
 public:
  enum class Action {
    kCompute,  // forward the next tokens
    kWait,     // another request is making the next block
    kLoad,     // read the pages named by `load`
  };
  struct Plan {
    Action action = Action::kCompute;
    std::vector<PageKey> load;
  };

  PrefixPlanner(BlockCache& cache, const PageStore& pages, Rates& rates,
                CoreMetrics& metrics, ServerCoreOptions::Restore restore)
      : cache_(cache),
        pages_(pages),
        rates_(rates),
        metrics_(metrics),
        restore_(restore) {}

  // Takes what blocks of `request` are in memory (which drops its sequence: it
  // is to be made anew from its blocks), then says what comes next. Blocks that
  // are to be computed or loaded are entered as `request`'s flights.
  Plan Next(ActiveRequest& request);

  // `request` has made the block, or will not: those that wait plan again.
  void Land(ActiveRequest& request, const PageKey& key);
  void LandAll(ActiveRequest& request);

  size_t num_flights() const { return flights_.size(); }

 private:
  void Expect(ActiveRequest& request, const PageKey& key);
  std::vector<PageKey> PagesFrom(ActiveRequest& request,
                                 int64_t first_block) const;

  BlockCache& cache_;
  const PageStore& pages_;
  Rates& rates_;
  CoreMetrics& metrics_;
  const ServerCoreOptions::Restore restore_;
  std::unordered_map<PageKey, const ActiveRequest*, DigestHash> flights_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_PREFIX_PLANNER_H_
