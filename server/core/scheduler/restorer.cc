// Planning at block boundaries, and restoring: pages are read by the loaders
// while the ones that are there are rematerialized, in slices between steps.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/log.h"
#include "engine/types.h"
#include "server/core/scheduler/scheduler.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// Rematerialization between two steps while others compute: short beside a step
// with a prompt's chunk in it.
constexpr double kRestoreSliceSeconds = 0.010;
constexpr int64_t kMinSlice = 2;

// Pages that one loader reads in one go: few, so that every loader has some.
// The first loads are of one page, so that rematerializing begins soon.
constexpr size_t kPagesPerLoad = 4;
constexpr size_t kSinglePages = 4;

}  // namespace

// Returns whether pages were rematerialized.
bool Scheduler::PlanAndRestore() {
  const std::vector<std::shared_ptr<ActiveRequest>> requests = running_;
  ActiveRequest* to_restore = nullptr;
  for (const std::shared_ptr<ActiveRequest>& request : requests) {
    request->may_compute = false;
    if (request->state == RequestState::kReady) {
      PrefixPlanner::Plan plan = planner_.Next(*request);
      request->may_compute = plan.action == PrefixPlanner::Action::kCompute;
      const bool waits = plan.action == PrefixPlanner::Action::kWait;
      if (waits && !request->waiting) {
        metrics_.Add(CoreCounter::kSingleFlightWaits, 1);
      }
      request->waiting = waits;
      if (plan.action == PrefixPlanner::Action::kLoad) {
        StartLoad(*request, std::move(plan.load));
      }
    }
    if (to_restore == nullptr && request->state == RequestState::kRestoring &&
        request->restore.front().hit.has_value()) {
      to_restore = request.get();
    }
  }
  if (to_restore == nullptr || !RestoreSlice(*to_restore)) return false;
  StageSlice(*to_restore);
  return true;
}

int64_t Scheduler::MaxSlice() const {
  const bool others_compute =
      std::any_of(running_.begin(), running_.end(),
                  [](const auto& other) { return other->may_compute; });
  const int64_t most = engine_.max_useful_remat_jobs();
  const double block = rates_.values().remat_block;
  if (!others_compute || block <= 0) return most;
  return std::clamp(static_cast<int64_t>(kRestoreSliceSeconds / block),
                    kMinSlice, most);
}

// The next blocks that the request restores, as far as their pages are here.
std::vector<RematJob> Scheduler::NextRemats(const ActiveRequest& request,
                                            int64_t most) {
  std::vector<RematJob> remats;
  for (const RestoreSlot& slot : request.restore) {
    if (static_cast<int64_t>(remats.size()) == most || !slot.hit.has_value()) {
      break;
    }
    const auto index =
        static_cast<int64_t>(request.live.holds.size() + remats.size());
    remats.push_back({.block_index = index,
                      .page = slot.hit->page->bytes(),
                      .tokens = request.TokensOfBlock(index),
                      .remat = request.remat});
  }
  return remats;
}

// Pages of the next slice travel to the device beside the step that comes
// before it.
void Scheduler::StageSlice(ActiveRequest& request) {
  request.num_staged = 0;
  if (request.state != RequestState::kRestoring) return;
  const std::vector<RematJob> next = NextRemats(request, MaxSlice());
  if (!next.empty())
    request.num_staged = engine_.StagePages(*request.codec, next);
}

void Scheduler::StartLoad(ActiveRequest& request, std::vector<PageKey> keys) {
  request.state = RequestState::kRestoring;
  request.restore_began = steady_clock::now();
  request.load_ended = std::make_shared<std::atomic<bool>>(false);
  for (const PageKey& key : keys) {
    request.restore.push_back({.key = key, .hit = std::nullopt});
  }
  size_t end = 0;
  for (size_t begin = 0; begin < keys.size(); begin = end) {
    end = std::min(begin + (begin < kSinglePages ? 1 : kPagesPerLoad),
                   keys.size());
    loaders_.Post(
        [this, request_id = request.id, load_ended = request.load_ended,
         part =
             std::vector<PageKey>(keys.begin() + static_cast<ptrdiff_t>(begin),
                                  keys.begin() + static_cast<ptrdiff_t>(end))] {
          LoadResult result = Load(request_id, load_ended, part);
          MutexLock lock(mu_);
          loads_.push_back(std::move(result));
          changed_.Signal();
        });
  }
}

// On a loader's thread.
Scheduler::LoadResult Scheduler::Load(
    uint64_t request_id, const std::shared_ptr<std::atomic<bool>>& load_ended,
    std::span<const PageKey> keys) {
  LoadResult result;
  result.request_id = request_id;
  result.load_ended = load_ended;
  const SteadyTime begin = steady_clock::now();
  for (const PageKey& key : keys) {
    if (*load_ended) return result;
    absl::StatusOr<PageHit> hit = deps_.store->pages().Get(key);
    if (!hit.ok()) {
      result.failed_key = key;
      result.status = hit.status();
      break;
    }
    result.pages.push_back({.key = key, .hit = *std::move(hit)});
  }
  const double seconds = SecondsBetween(begin, steady_clock::now());
  rates_.AddLoad(static_cast<int64_t>(result.pages.size()), seconds);
  metrics_.Observe(CoreHistogram::kPageLoad, seconds);
  return result;
}

void Scheduler::TakeLoad(LoadResult result) {
  const auto it =
      std::find_if(running_.begin(), running_.end(), [&](const auto& request) {
        return request->id == result.request_id &&
               request->load_ended == result.load_ended;
      });
  if (it == running_.end()) return;  // ended or preempted meanwhile
  ActiveRequest& request = **it;
  for (RestoreSlot& page : result.pages) {
    for (RestoreSlot& slot : request.restore) {
      if (slot.key == page.key) slot.hit = std::move(page.hit);
    }
  }
  if (!result.status.ok())
    LoadFailed(request, result.failed_key, result.status);
}

// Rule R3: what cannot be read is computed, and is counted.
void Scheduler::LoadFailed(ActiveRequest& request, const PageKey& key,
                           const absl::Status& status) {
  const auto slot =
      std::find_if(request.restore.begin(), request.restore.end(),
                   [&](const RestoreSlot& other) { return other.key == key; });
  if (slot == request.restore.end()) return;  // given up with one before it
  const auto failed_block =
      static_cast<int64_t>(request.live.holds.size()) +
      static_cast<int64_t>(slot - request.restore.begin());
  if (absl::IsNotFound(status)) {
    metrics_.Add(CoreCounter::kPagesMissing, 1);
  } else if (absl::IsDataLoss(status)) {
    metrics_.Add(CoreCounter::kPagesCorrupt, 1);
  }
  const bool no_memory = absl::IsResourceExhausted(status);
  if (no_memory && !request.load_retried && idle_.size() > 0) {
    // Idle sequences go, and it is tried once more.
    request.load_retried = true;
    Reclaim(static_cast<int64_t>(request.codec->page_bytes()) *
                engine_.max_useful_remat_jobs(),
            /*all=*/true);
  } else {
    request.no_restore_before =
        no_memory ? request.reusable_blocks() : failed_block + 1;
  }
  for (auto it = slot; it != request.restore.end(); ++it) {
    planner_.Land(request, it->key);
  }
  request.restore.erase(slot, request.restore.end());
  if (request.restore.empty()) EndRestore(request);
}

void Scheduler::EndRestore(ActiveRequest& request) {
  request.EndLoad();
  request.state = RequestState::kReady;
  progress_ = true;
  request.final.timings.restore_us +=
      MicrosBetween(request.restore_began, steady_clock::now());
}

bool Scheduler::RestoreSlice(ActiveRequest& request) {
  request.live.sequence.reset();  // made anew from its blocks
  const std::vector<RematJob> remat =
      NextRemats(request, std::max(MaxSlice(), request.num_staged));
  std::vector<MemoryReservation> memory;
  while (memory.size() < remat.size()) {
    std::optional<MemoryReservation> block =
        Reserve(request, static_cast<int64_t>(engine_.kv_block_bytes()));
    if (!block.has_value()) return false;
    memory.push_back(*std::move(block));
  }
  const auto slice = static_cast<int64_t>(remat.size());
  const SteadyTime begin = steady_clock::now();
  std::vector<absl::StatusOr<KvBlockRef>> blocks =
      engine_.Remat(*request.codec, remat);
  const SteadyTime end = steady_clock::now();
  rates_.AddRemat(slice, SecondsBetween(begin, end));
  metrics_.Observe(CoreHistogram::kRematBlock,
                   SecondsBetween(begin, end) / static_cast<double>(slice));
  request.final.timings.remat_us += MicrosBetween(begin, end);
  for (size_t i = 0; i < blocks.size(); ++i) {
    // The page is whole: it is the device that has no room for its block.
    if (absl::IsResourceExhausted(blocks[i].status())) {
      if (!MakeRoomOnDevice()) FailOrCut(request, blocks[i].status());
      return true;
    }
    const RestoreSlot page = std::move(request.restore.front());
    if (!blocks[i].ok()) {
      XC_LOG_WARN("page dropped", "key={} why={}", ToHex(page.key),
                  LogValue(std::string(blocks[i].status().message())));
      metrics_.Add(CoreCounter::kPagesCorrupt, 1);
      deps_.store->pages().Erase(page.key).IgnoreError();
      planner_.LandAll(request);
      request.no_restore_before =
          static_cast<int64_t>(request.live.holds.size()) + 1;
      request.restore.clear();
      break;
    }
    request.restore.pop_front();
    ShrinkTo(**blocks[i], &memory[i]);
    request.live.holds.push_back(cache_.Insert(
        page.key, static_cast<int64_t>(request.live.holds.size()),
        *std::move(blocks[i]), std::move(memory[i]), /*stored=*/true));
    planner_.Land(request, page.key);
    metrics_.Add(CoreCounter::kBlocksRematerialized, 1);
    if (request.preempted) continue;
    (page.hit->tier == PageTier::kHost ? request.final.reused.host
                                       : request.final.reused.disk) +=
        kBlockTokens;
  }
  if (request.restore.empty()) EndRestore(request);
  return true;
}

}  // namespace xcache
