// Prefix reuse, block by block, with one maker for each block.
#include "server/core/scheduler/prefix_planner.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

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
  while (plan.action == Action::kCompute && LetGoOfPartial(request)) {
    plan = NextHere(request);
  }
  if (plan.action != Action::kAwait) remote_.EndWait(request);
  return plan;
}

// Blocks that the window of its next row meets may not be whole: it was taken
// to compute later ones first, but their pages are not to be had.
bool PrefixPlanner::LetGoOfPartial(ActiveRequest& request) {
  if (request.live.sequence != nullptr) return false;
  const std::vector<BlockHold>& holds = request.live.holds;
  const int64_t rows = request.live.num_rows();
  const auto partial =
      std::find_if(holds.begin() + FirstWholeBlock(model_, rows), holds.end(),
                   [](const BlockHold& hold) { return !hold.kv()->whole(); });
  if (partial == holds.end()) return false;
  const int64_t left = (partial - holds.begin()) * kBlockTokens;
  request.restore_again_before = rows / kBlockTokens;
  request.live.Truncate(left, cache_.Tick());
  // Each was counted as reused, wherever it came from, and will be again.
  if (!request.preempted) {
    auto gone = static_cast<uint64_t>(rows - left);
    ReusedCounts& reused = request.final.reused;
    for (uint64_t* source :
         {&reused.disk, &reused.host, &reused.remote, &reused.device}) {
      const uint64_t taken = std::min(*source, gone);
      *source -= taken;
      gone -= taken;
    }
  }
  return true;
}

// Where the request will begin to compute, as far as one knows, says which
// blocks its windows meet.
void PrefixPlanner::FindWholeFrom(ActiveRequest& request) const {
  if (model_.window == 0) return;
  auto block = static_cast<int64_t>(request.live.holds.size());
  while (block < request.reusable_blocks()) {
    const PageKey& key = request.KeyOfBlock(block);
    if (!cache_.Contains(key, /*whole=*/false) &&
        !(request.MayRestore(block) && pages_.Contains(key))) {
      break;
    }
    ++block;
  }
  if (request.restore_again_before >= 0) {
    block = std::min(block, request.restore_again_before);
  }
  request.whole_from = FirstWholeBlock(model_, block * kBlockTokens);
}

PrefixPlanner::Plan PrefixPlanner::NextHere(ActiveRequest& request) {
  if (request.options.no_cache || request.live.num_rows() % kBlockTokens != 0)
    return {};
  FindWholeFrom(request);
  while (true) {
    const auto block = static_cast<int64_t>(request.live.holds.size());
    if (block >= request.reusable_blocks()) {
      remote_.Finish(request);
      return {};
    }
    const PageKey key = request.KeyOfBlock(block);
    const ActiveRequest* const maker = flights_.MakerOf(key);
    if (maker == &request) return {};
    if (std::optional<BlockHold> hold =
            cache_.Acquire(key, /*whole=*/block >= request.whole_from)) {
      request.live.sequence.reset();
      request.live.holds.push_back(*std::move(hold));
      if (!request.preempted) request.final.reused.device += kBlockTokens;
      continue;
    }
    if (maker != nullptr) return {.action = Action::kWait, .load = {}};
    if (request.MayRestore(block) &&
        restore_ != ServerCoreOptions::Restore::kNever) {
      // Asked first: a page that comes in between is seen by PagesFrom.
      if (!pages_.Contains(key) && remote_.MustWait(request, key)) {
        return {.action = Action::kAwait, .load = {}};
      }
      std::vector<PageKey> load = PagesFrom(request, block);
      const auto n = static_cast<int64_t>(load.size());
      if (n > 0 &&
          (restore_ == ServerCoreOptions::Restore::kAlways ||
           block < request.restore_again_before || PreferRestore(load))) {
        for (const PageKey& page : load) flights_.Begin(request, page);
        return {.action = Action::kLoad, .load = std::move(load)};
      }
      if (n > 0) {
        metrics_.Add(CoreCounter::kRecomputedByCost, load.size());
        request.ComputeBlocks(block, block + n);
      }
    }
    if (request.MayRestore(block) && Promised(request, block) &&
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
        cache_.Contains(key, /*whole=*/block >= request.whole_from)) {
      break;
    }
    load.push_back(key);
  }
  return load;
}

}  // namespace xcache
