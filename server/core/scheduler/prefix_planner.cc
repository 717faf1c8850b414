// Prefix reuse, block by block, with one maker for each block.
#include "server/core/scheduler/prefix_planner.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cachestore/page_key.h"
#include "engine/types.h"
#include "server/core/core_metrics.h"
#include "server/core/scheduler/job.h"

namespace xcache {
namespace {

// Pages of one load, 4,096 tokens: bounds the pages in memory at once.
constexpr size_t kMaxLoad = 64;

}  // namespace

PrefixPlanner::Plan PrefixPlanner::Next(Job& job) {
  if (job.options.no_cache || job.live.num_rows() % kBlockTokens != 0)
    return {};
  while (true) {
    const auto block = static_cast<int64_t>(job.live.holds.size());
    if (block >= job.reusable_blocks()) return {};
    const PageKey key = job.KeyOfBlock(block);
    const auto flight = flights_.find(key);
    if (flight != flights_.end() && flight->second == &job) return {};
    if (std::optional<BlockHold> hold = cache_.Acquire(key)) {
      job.live.sequence.reset();
      job.live.holds.push_back(*std::move(hold));
      if (!job.preempted) job.final.reused.device += kBlockTokens;
      continue;
    }
    if (flight != flights_.end()) return {.action = Action::kWait, .load = {}};
    if (block >= job.no_restore_before &&
        restore_ != ServerCoreOptions::Restore::kNever) {
      std::vector<PageKey> load = PagesFrom(job, block);
      const auto n = static_cast<int64_t>(load.size());
      if (n > 0 && (restore_ == ServerCoreOptions::Restore::kAlways ||
                    rates_.PreferRestore(n))) {
        for (const PageKey& page : load) Expect(job, page);
        return {.action = Action::kLoad, .load = std::move(load)};
      }
      if (n > 0) {
        metrics_.Add(CoreCounter::kRecomputedByCost, load.size());
        job.no_restore_before = block + n;
      }
    }
    Expect(job, key);
    return {};
  }
}

// The run of pages that the store has and nobody else is making.
std::vector<PageKey> PrefixPlanner::PagesFrom(Job& job,
                                              int64_t first_block) const {
  std::vector<PageKey> load;
  const int64_t limit = job.reusable_blocks();
  for (int64_t block = first_block; block < limit && load.size() < kMaxLoad;
       ++block) {
    const PageKey& key = job.KeyOfBlock(block);
    if (!pages_.Contains(key) || flights_.contains(key) ||
        cache_.Contains(key)) {
      break;
    }
    load.push_back(key);
  }
  return load;
}

void PrefixPlanner::Expect(Job& job, const PageKey& key) {
  if (flights_.emplace(key, &job).second) job.flights.push_back(key);
}

void PrefixPlanner::Land(Job& job, const PageKey& key) {
  const auto it = std::find(job.flights.begin(), job.flights.end(), key);
  if (it == job.flights.end()) return;
  job.flights.erase(it);
  flights_.erase(key);
}

void PrefixPlanner::LandAll(Job& job) {
  for (const PageKey& key : job.flights) flights_.erase(key);
  job.flights.clear();
}

}  // namespace xcache
