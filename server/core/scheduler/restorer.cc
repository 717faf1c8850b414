#include "server/core/scheduler/restorer.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "cachestore/cache_store.h"
#include "engine/base/log.h"
#include "engine/types.h"

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

// The next blocks that the request restores, as far as their pages are here.
std::vector<RematJob> NextRemats(const ActiveRequest& request, int64_t most) {
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
                      .remat = request.remat,
                      .whole = index >= request.whole_from});
  }
  return remats;
}

}  // namespace

Restorer::Restorer(const ServerCoreDeps& deps, const ServerCoreOptions& options,
                   RunQueue& queue, WorkingSets& working_sets,
                   TurnFinisher& finisher, Rates& rates, FairShares& shares,
                   std::function<void()> wake)
    : engine_(*deps.engine),
      pages_(deps.store->pages()),
      metrics_(*deps.metrics),
      queue_(queue),
      working_sets_(working_sets),
      finisher_(finisher),
      rates_(rates),
      shares_(shares),
      wake_(std::move(wake)),
      remote_(*deps.store, working_sets.blocks(), rates, metrics_, options,
              wake_),
      planner_(engine_.info(), working_sets, pages_, remote_, rates, metrics_,
               options.restore),
      loaders_(options.loader_threads) {}

bool Restorer::PlanAndRestore() {
  for (const RunQueue::RequestPtr& request : queue_.running()) {
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
  }
  // It may end in this.
  const RunQueue::RequestPtr to_restore = NextToRestore();
  if (to_restore == nullptr || !RestoreSlice(*to_restore)) return false;
  StageSlice(*to_restore);
  return true;
}

std::vector<FairShares::Part> Restorer::NextParts() const {
  std::map<std::string_view, FairShares::Part> parts;
  for (const RunQueue::RequestPtr& request : queue_.running()) {
    if (!request->may_compute) continue;
    const auto [it, is_new] = parts.try_emplace(request->base.tenant);
    FairShares::Part& part = it->second;
    if (is_new) part = shares_.PartOf(request->base.tenant);
    ++part.wants;
    if (!request->decoding()) continue;
    part.waits = true;
    ++part.gets;
  }
  std::vector<FairShares::Part> out;
  for (auto& [tenant, part] : parts) out.push_back(std::move(part));
  return out;
}

RunQueue::RequestPtr Restorer::NextToRestore() const {
  const std::vector<FairShares::Part> parts = NextParts();
  RunQueue::RequestPtr next;
  double least = 0;
  for (const RunQueue::RequestPtr& request : queue_.running()) {
    if (request->state != RequestState::kRestoring ||
        !request->restore.front().hit.has_value()) {
      continue;
    }
    const std::string& tenant = request->base.tenant;
    const double time = shares_.VirtualTime(tenant);
    if (next != nullptr && time >= least) continue;
    if (shares_.RestoreSeconds(tenant, parts) <= 0) continue;
    next = request;
    least = time;
  }
  return next;
}

int64_t Restorer::MaxSlice(const ActiveRequest& request) const {
  const bool others_compute =
      std::any_of(queue_.running().begin(), queue_.running().end(),
                  [](const auto& other) { return other->may_compute; });
  const int64_t most = engine_.max_useful_remat_jobs();
  const double block = rates_.values().remat_block;
  if (!others_compute || block <= 0) return most;
  const double share = shares_.RestoreSeconds(request.base.tenant, NextParts());
  // Beside another tenant's answers one at a time, where they take long; what
  // is over its share is made up for.
  const int64_t least = share == FairShares::kNoLimit ? kMinSlice : 1;
  const double seconds = std::min(kRestoreSliceSeconds, share);
  return std::clamp(static_cast<int64_t>(seconds / block), least,
                    std::max(least, most));
}

void Restorer::StageSlice(ActiveRequest& request) {
  request.num_staged = 0;
  if (request.state != RequestState::kRestoring) return;
  const std::vector<RematJob> next = NextRemats(request, MaxSlice(request));
  if (next.empty()) return;
  request.num_staged = engine_.StagePages(*request.codec, next);
}

void Restorer::StartLoad(ActiveRequest& request, std::vector<PageKey> keys) {
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
    Loaded loaded;
    loaded.request_id = request.id;
    loaded.load_ended = request.load_ended;
    loaders_.Post([this, loaded = std::move(loaded),
                   part = std::vector<PageKey>(
                       keys.begin() + static_cast<ptrdiff_t>(begin),
                       keys.begin() + static_cast<ptrdiff_t>(end))] {
      Load(loaded, part);
    });
  }
}

void Restorer::Load(Loaded loaded, std::span<const PageKey> keys) {
  const SteadyTime begin = steady_clock::now();
  for (const PageKey& key : keys) {
    if (*loaded.load_ended) return;
    absl::StatusOr<PageHit> hit = pages_.Get(key);
    if (!hit.ok()) {
      loaded.failed_key = key;
      loaded.status = hit.status();
      break;
    }
    loaded.pages.push_back({.key = key, .hit = *std::move(hit)});
  }
  const double seconds = SecondsBetween(begin, steady_clock::now());
  const auto from_host = std::count_if(
      loaded.pages.begin(), loaded.pages.end(), [](const RestoreSlot& page) {
        return page.hit->tier == PageTier::kHost;
      });
  rates_.AddLoad(from_host,
                 static_cast<int64_t>(loaded.pages.size()) - from_host,
                 seconds);
  metrics_.Observe(CoreHistogram::kPageLoad, seconds);
  {
    MutexLock lock(mu_);
    loaded_.push_back(std::move(loaded));
  }
  wake_();
}

void Restorer::TakeLoaded() {
  std::vector<Loaded> loaded;
  {
    MutexLock lock(mu_);
    loaded.swap(loaded_);
  }
  for (Loaded& load : loaded) Take(std::move(load));
}

void Restorer::Take(Loaded loaded) {
  const auto& running = queue_.running();
  const auto it =
      std::find_if(running.begin(), running.end(), [&](const auto& request) {
        return request->id == loaded.request_id &&
               request->load_ended == loaded.load_ended;
      });
  if (it == running.end()) return;  // ended or preempted meanwhile
  ActiveRequest& request = **it;
  for (RestoreSlot& page : loaded.pages) {
    for (RestoreSlot& slot : request.restore) {
      if (slot.key == page.key) slot.hit = std::move(page.hit);
    }
  }
  if (!loaded.status.ok()) {
    LoadFailed(request, loaded.failed_key, loaded.status);
  }
}

void Restorer::LoadFailed(ActiveRequest& request, const PageKey& key,
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
  if (no_memory && !request.load_retried &&
      working_sets_.MakeRoomFor(
          static_cast<int64_t>(request.codec->page_bytes()) *
          engine_.max_useful_remat_jobs())) {
    request.load_retried = true;
  } else {
    request.ComputeBlocks(
        failed_block, no_memory ? request.reusable_blocks() : failed_block + 1);
  }
  for (auto it = slot; it != request.restore.end(); ++it) {
    working_sets_.flights().Land(request, it->key);
  }
  request.restore.erase(slot, request.restore.end());
  if (request.restore.empty()) EndRestore(request);
}

void Restorer::EndRestore(ActiveRequest& request) {
  request.EndLoad();
  request.state = RequestState::kReady;
  request.final.timings.restore_us +=
      MicrosBetween(request.restore_began, steady_clock::now());
}

bool Restorer::RestoreSlice(ActiveRequest& request) {
  request.live.sequence.reset();  // made anew from its blocks
  std::vector<RematJob> remat =
      NextRemats(request, std::max(MaxSlice(request), request.num_staged));
  std::vector<MemoryReservation> memory;
  while (memory.size() < remat.size()) {
    absl::StatusOr<MemoryReservation> block = working_sets_.Reserve(
        request, static_cast<int64_t>(engine_.kv_block_bytes()));
    if (!block.ok()) {
      if (!absl::IsUnavailable(block.status())) {
        finisher_.FailOrCut(request, block.status());
        return false;
      }
      // As many as there is memory for, unless it is itself what gave way.
      // Their pages then give memory back.
      if (memory.empty() || request.state != RequestState::kRestoring) {
        return false;
      }
      remat.resize(memory.size());
      break;
    }
    memory.push_back(*std::move(block));
  }
  const auto slice = static_cast<int64_t>(remat.size());
  const SteadyTime begin = steady_clock::now();
  std::vector<absl::StatusOr<KvBlockRef>> blocks =
      engine_.Remat(*request.codec, remat);
  const SteadyTime end = steady_clock::now();
  rates_.AddRemat(slice, SecondsBetween(begin, end));
  shares_.Restored(request.base.tenant, SecondsBetween(begin, end));
  metrics_.Observe(CoreHistogram::kRematBlock,
                   SecondsBetween(begin, end) / static_cast<double>(slice));
  request.final.timings.remat_us += MicrosBetween(begin, end);
  for (size_t i = 0; i < blocks.size(); ++i) {
    // The page is whole: it is the device that has no room for its block.
    if (absl::IsResourceExhausted(blocks[i].status())) {
      if (!working_sets_.MakeRoomOnDevice()) {
        finisher_.FailOrCut(request, blocks[i].status());
      }
      return true;
    }
    const RestoreSlot page = std::move(request.restore.front());
    const auto index = static_cast<int64_t>(request.live.holds.size());
    if (!blocks[i].ok()) {
      XC_LOG_WARN("page dropped", "key={} why={}", ToHex(page.key),
                  LogValue(std::string(blocks[i].status().message())));
      metrics_.Add(CoreCounter::kPagesCorrupt, 1);
      pages_.Erase(page.key).IgnoreError();
      working_sets_.flights().LandAll(request);
      request.ComputeBlocks(index, index + 1);
      request.restore.clear();
      break;
    }
    request.restore.pop_front();
    WorkingSets::ShrinkTo(**blocks[i], &memory[i]);
    request.live.holds.push_back(working_sets_.blocks().Insert(
        page.key, index, *std::move(blocks[i]), std::move(memory[i]),
        /*stored=*/true));
    working_sets_.flights().Land(request, page.key);
    metrics_.Add(CoreCounter::kBlocksRematerialized, 1);
    const bool is_remote = remote_.Used(request, page.key);
    if (request.preempted) continue;
    ReusedCounts& reused = request.final.reused;
    (is_remote                           ? reused.remote
     : page.hit->tier == PageTier::kHost ? reused.host
                                         : reused.disk) += kBlockTokens;
  }
  if (request.restore.empty()) EndRestore(request);
  return true;
}

}  // namespace xcache
