// What a request does about pages that only the shared tier has: it has them
// fetched as soon as its prompt and its codec are known, and waits for one that
// it needs next, within bounds. So a slow store never makes a request slower
// than computing its prompt would be, and the bound.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_REMOTE_PAGES_H_
#define XCACHE_SERVER_CORE_SCHEDULER_REMOTE_PAGES_H_

#include <chrono>
#include <functional>

#include "cachestore/cache_store.h"
#include "cachestore/page_key.h"
#include "engine/base/sha256.h"
#include "server/core/cache/blocks.h"
#include "server/core/core_metrics.h"
#include "server/core/core_options.h"
#include "server/core/scheduler/active_request.h"
#include "server/core/scheduler/rates.h"

namespace xcache {

class RemotePages {
 public:
  // `wake` is called, on any thread, when a page came or will not come.
  RemotePages(CacheStore& store, const BlockCache& blocks, Rates& rates,
              CoreMetrics& metrics, const ServerCoreOptions& options,
              std::function<void()> wake)
      : store_(store),
        blocks_(blocks),
        rates_(rates),
        metrics_(metrics),
        restore_(options.restore),
        longest_wait_(options.remote_wait),
        longest_wait_for_unknown_(options.unknown_remote_wait),
        wake_(std::move(wake)) {}

  // Has the pages fetched that are not here, from the first one on; once for a
  // request, where that is cheaper than computing. On any thread to which the
  // request belongs. `cache_fp`: of its codec.
  void Ask(ActiveRequest& request, const Digest& cache_fp);

  // On the scheduler's thread:

  // Whether the request is to wait for this page, which is not here and which
  // it needs next, until `request.remote.until` at the latest.
  bool MustWait(ActiveRequest& request, const PageKey& key);
  // It goes on, with the page or without.
  void EndWait(ActiveRequest& request);
  // A page was rematerialized. Whether it was fetched for this request.
  bool Used(ActiveRequest& request, const PageKey& key);
  // It needs no more pages.
  void Finish(ActiveRequest& request);

 private:
  CacheStore& store_;
  const BlockCache& blocks_;
  Rates& rates_;
  CoreMetrics& metrics_;
  const ServerCoreOptions::Restore restore_;
  const std::chrono::milliseconds longest_wait_, longest_wait_for_unknown_;
  const std::function<void()> wake_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_REMOTE_PAGES_H_
