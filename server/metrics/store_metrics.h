// Writes the store's and the memory budget's snapshots as metrics.
#ifndef XCACHE_SERVER_METRICS_STORE_METRICS_H_
#define XCACHE_SERVER_METRICS_STORE_METRICS_H_

#include "cachestore/store_stats.h"
#include "engine/base/memory_budget.h"
#include "server/metrics/metrics.h"

namespace xcache {

void SampleStore(const StoreStats& stats, SampleWriter& writer);
void SampleMemory(const MemoryBudget& budget, SampleWriter& writer);

}  // namespace xcache

#endif  // XCACHE_SERVER_METRICS_STORE_METRICS_H_
