#include "server/core/scheduler/working_sets.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"

namespace xcache {
namespace {

// Working sets go before host pages while they have more than half of the
// memory, and after them otherwise, so that neither starves the other. The
// store's own priority is 100.
constexpr int kReclaimFirst = 0;
constexpr int kReclaimLast = 200;

constexpr int64_t kEverything = std::numeric_limits<int64_t>::max();

// How long a request that runs alone waits for memory that others give back
// soon: pages on their way to the disk, answers on their way to a client.
constexpr auto kStallLimit = std::chrono::seconds(5);

bool HoldsMemory(const ActiveRequest& request) {
  return request.live.memory.bytes() > 0 || !request.live.holds.empty() ||
         request.next_block.bytes() > 0 || !request.restore.empty();
}

}  // namespace

WorkingSets::WorkingSets(const ServerCoreDeps& deps, RunQueue& queue,
                         std::function<void()> wake)
    : engine_(*deps.engine),
      memory_(*deps.memory),
      metrics_(*deps.metrics),
      queue_(queue),
      wake_(std::move(wake)),
      blocks_(metrics_),
      idle_(blocks_, metrics_) {
  reclaim_first_ = memory_.AddReclaimer(
      "working sets over their half", kReclaimFirst,
      [this](int64_t bytes) { return Reclaim(bytes, /*all=*/false); });
  reclaim_last_ = memory_.AddReclaimer(
      "working sets", kReclaimLast,
      [this](int64_t bytes) { return Reclaim(bytes, /*all=*/true); });
}

int64_t WorkingSets::used_bytes() const {
  return memory_.used_bytes(MemoryAccount::kWorkingSets) +
         memory_.used_bytes(MemoryAccount::kSequences);
}

void WorkingSets::FillGauges(CoreGauges* gauges) const {
  gauges->sessions_in_memory = idle_.size();
  gauges->working_set_blocks = blocks_.num_blocks();
  gauges->working_set_bytes = static_cast<uint64_t>(used_bytes());
}

absl::StatusOr<MemoryReservation> WorkingSets::Reserve(ActiveRequest& request,
                                                       int64_t bytes) {
  while (true) {
    std::optional<MemoryReservation> memory =
        memory_.Reserve(MemoryAccount::kSequences, bytes);
    if (memory.has_value()) {
      request.stalled_since = SteadyTime();
      return *std::move(memory);
    }
    bool alone = true;
    ActiveRequest* const first =
        queue_.FirstToGiveWay([&](const ActiveRequest& other) {
          const bool same = &other == &request;
          if (!same && !HoldsMemory(other)) return false;
          alone = alone && same;
          return true;
        });
    if (!alone) {
      const bool gives_way = first == &request;
      Preempt(*first);
      if (gives_way) return absl::UnavailableError("put back");
      continue;
    }
    const SteadyTime now = std::chrono::steady_clock::now();
    if (request.stalled_since == SteadyTime()) request.stalled_since = now;
    const bool never =
        WorkingSetBytes(engine_, *request.codec, request.target_rows()) >
        memory_.cap_bytes();
    if (!never && now - request.stalled_since <= kStallLimit) {
      return absl::UnavailableError("to be tried again");
    }
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "no memory for a working set of ", request.tokens.size(),
            " tokens: ", memory_.used_bytes(), " bytes of ",
            memory_.cap_bytes(), " are in use")),
        Reason::kOutOfMemory);
  }
}

void WorkingSets::ShrinkTo(const KvBlock& block, MemoryReservation* memory) {
  const auto bytes = static_cast<int64_t>(block.bytes());
  if (bytes < memory->bytes()) memory->Resize(bytes);
}

void WorkingSets::Preempt(ActiveRequest& request) {
  metrics_.Add(CoreCounter::kPreemptions, 1);
  EndMaking(request);
  request.live.Drop(blocks_.Tick());
  request.no_restore_before = 0;
  request.restore_again_before = -1;
  queue_.PutBack(request);
}

void WorkingSets::EndMaking(ActiveRequest& request) {
  flights_.LandAll(request);
  request.EndLoad();
  request.next_block.Release();
}

// Sequences may only go on the scheduler's thread: elsewhere blocks that nobody
// holds go now, and the scheduler is asked for the rest.
int64_t WorkingSets::Reclaim(int64_t wanted_bytes, bool all) {
  if (!all) {
    wanted_bytes =
        std::min(wanted_bytes, used_bytes() - memory_.cap_bytes() / 2);
    if (wanted_bytes <= 0) return 0;
  }
  if (thread_id_.load() != std::this_thread::get_id()) {
    const int64_t freed = blocks_.Evict(wanted_bytes);
    if (freed < wanted_bytes && idle_.size() > 0) {
      wanted_idle_bytes_ += wanted_bytes - freed;
      wake_();
    }
    return freed;
  }
  int64_t freed = 0;
  while (freed < wanted_bytes) {
    const bool idle_first = idle_.OldestTick() <= blocks_.OldestTick();
    const int64_t bytes =
        idle_first && idle_.size() > 0 ? idle_.DropOldest() : blocks_.Evict(1);
    if (bytes == 0) break;
    freed += bytes;
  }
  return freed;
}

bool WorkingSets::MakeRoomOnDevice() {
  if (Reclaim(kEverything, /*all=*/true) > 0) return true;
  int holders = 0;
  ActiveRequest* const first =
      queue_.FirstToGiveWay([&](const ActiveRequest& request) {
        const bool holds = HoldsMemory(request);
        holders += holds ? 1 : 0;
        return holds;
      });
  if (holders < 2) return false;
  Preempt(*first);
  Reclaim(kEverything, /*all=*/true);
  return true;
}

bool WorkingSets::MakeRoomFor(int64_t bytes) {
  if (idle_.size() == 0) return false;
  Reclaim(bytes, /*all=*/true);
  return true;
}

void WorkingSets::DropWanted() {
  const int64_t wanted = wanted_idle_bytes_.exchange(0);
  if (wanted > 0) Reclaim(wanted, /*all=*/true);
}

void WorkingSets::Drop(const SessionKey& key, std::span<const PageKey> blocks) {
  idle_.Drop(key);
  blocks_.Drop(blocks);
}

void WorkingSets::TakeIdle(ActiveRequest& request) {
  if (request.lease == nullptr || request.options.no_cache) return;
  std::optional<LiveSequence> live = idle_.Take(request.lease->key());
  if (!live.has_value()) return;
  request.live = *std::move(live);
  // Another policy: of a first turn that failed, under another default.
  if (&request.live.sequence->codec() != request.codec.get() ||
      request.live.remat != request.remat) {
    request.live.Drop(blocks_.Tick());
  }
  TruncateTo(request,
             std::span(request.tokens).first(request.tokens.size() - 1));
  request.final.reused.device += static_cast<uint64_t>(request.live.num_rows());
}

void WorkingSets::LeaveBehind(ActiveRequest& request) {
  if (request.lease == nullptr || request.options.no_cache ||
      request.live.sequence == nullptr || request.live.num_rows() == 0) {
    request.live.Drop(blocks_.Tick());
    return;
  }
  idle_.Put(request.lease->key(), std::move(request.live));
  request.live = LiveSequence();
}

void WorkingSets::TruncateTo(ActiveRequest& request,
                             std::span<const TokenId> history) {
  if (request.live.sequence == nullptr) return;
  const std::span<const TokenId> rows = request.live.sequence->tokens();
  const auto common =
      std::mismatch(rows.begin(), rows.end(), history.begin(), history.end());
  request.live.Truncate(common.first - rows.begin(), blocks_.Tick());
}

}  // namespace xcache
