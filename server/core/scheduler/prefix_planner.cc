// Prefix reuse, block by block, with one maker for each block.
#include "server/core/scheduler/prefix_planner.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/types.h"

namespace xcache {
namespace {

// Pages of one load, 4,096 tokens: bounds the pages in memory at once.
constexpr size_t kMaxLoad = 64;

// Whether the session's manifest names the block's page.
bool Promised(ActiveRequest& request, int64_t block) {
  if (request.lease == nullptr) return false;
  const std::vector<PageKey>& keys = request.lease->record().page_keys;
  const auto i = static_cast<size_t>(block);
  return i < keys.size() && keys[i] == request.KeyOfBlock(block);
}

}  // namespace

PrefixPlanner::Plan PrefixPlanner::Next(ActiveRequest& request) {
  Plan plan = NextHere(request);
  if (plan.action != Action::kAwait) remote_.EndWait(request);
  return plan;
}

PrefixPlanner::Plan PrefixPlanner::NextHere(ActiveRequest& request) {
  if (request.options.no_cache || request.live.num_rows() % kBlockTokens != 0)
    return {};
  while (true) {
    const auto block = static_cast<int64_t>(request.live.holds.size());
    if (block >= request.reusable_blocks()) {
      remote_.Finish(request);
      return {};
    }
    const PageKey key = request.KeyOfBlock(block);
    const ActiveRequest* const maker = flights_.MakerOf(key);
    if (maker == &request) return {};
    if (std::optional<BlockHold> hold = cache_.Acquire(key)) {
      request.live.sequence.reset();
      request.live.holds.push_back(*std::move(hold));
      if (!request.preempted) request.final.reused.device += kBlockTokens;
      continue;
    }
    if (maker != nullptr) return {.action = Action::kWait, .load = {}};
    if (block >= request.no_restore_before &&
        restore_ != ServerCoreOptions::Restore::kNever) {
      // Asked first: a page that comes in between is seen by PagesFrom.
      if (!pages_.Contains(key) && remote_.MustWait(request, key)) {
        return {.action = Action::kAwait, .load = {}};
      }
      std::vector<PageKey> load = PagesFrom(request, block);
      const auto n = static_cast<int64_t>(load.size());
      if (n > 0 && (restore_ == ServerCoreOptions::Restore::kAlways ||
                    PreferRestore(load))) {
        for (const PageKey& page : load) flights_.Begin(request, page);
        return {.action = Action::kLoad, .load = std::move(load)};
      }
      if (n > 0) {
        metrics_.Add(CoreCounter::kRecomputedByCost, load.size());
        request.no_restore_before = block + n;
      }
    }
    if (block >= request.no_restore_before && Promised(request, block) &&
        !pages_.Contains(key)) {
      metrics_.Add(CoreCounter::kPagesMissing, 1);
    }
    flights_.Begin(request, key);
    return {};
  }
}

bool PrefixPlanner::PreferRestore(const std::vector<PageKey>& pages) {
  int64_t from_host = 0;
  for (const PageKey& page : pages) {
    if (pages_.TierOf(page) == PageTier::kHost) ++from_host;
  }
  return rates_.PreferRestore(from_host,
                              static_cast<int64_t>(pages.size()) - from_host);
}

// The run of pages that the store has and nobody else is making.
std::vector<PageKey> PrefixPlanner::PagesFrom(ActiveRequest& request,
                                              int64_t first_block) const {
  std::vector<PageKey> load;
  const int64_t limit = request.reusable_blocks();
  for (int64_t block = first_block; block < limit && load.size() < kMaxLoad;
       ++block) {
    const PageKey& key = request.KeyOfBlock(block);
    if (!pages_.Contains(key) || flights_.MakerOf(key) != nullptr ||
        cache_.Contains(key)) {
      break;
    }
    load.push_back(key);
  }
  return load;
}

}  // namespace xcache
