// Memory of working sets (rule R5): reserved before it is used; idle ones give
// way first, then the youngest running request waits.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/memory_budget.h"
#include "server/core/reason.h"
#include "server/core/scheduler/scheduler.h"

namespace xcache {
namespace {

// How long a request that runs alone waits for memory that others give back
// soon: pages on their way to the disk, answers on their way to a client.
constexpr auto kStallLimit = std::chrono::seconds(5);

bool HoldsMemory(const ActiveRequest& request) {
  return request.live.memory.bytes() > 0 || !request.live.holds.empty() ||
         request.next_block.bytes() > 0 || !request.restore.empty();
}

}  // namespace

// Nothing: `request` cannot go on now. It was preempted, or has failed, or is
// alone and is to try again.
std::optional<MemoryReservation> Scheduler::Reserve(ActiveRequest& request,
                                                    int64_t bytes) {
  while (true) {
    std::optional<MemoryReservation> memory =
        deps_.memory->Reserve(MemoryAccount::kSequences, bytes);
    if (memory.has_value()) {
      request.stalled_since = SteadyTime();
      return memory;
    }
    // The youngest gives way, so the oldest always gets on.
    ActiveRequest* youngest = nullptr;
    for (const std::shared_ptr<ActiveRequest>& other : running_) {
      if (HoldsMemory(*other) || other.get() == &request)
        youngest = other.get();
    }
    if (youngest != &request) {
      Preempt(*youngest);
      continue;
    }
    const bool alone =
        std::none_of(running_.begin(), running_.end(), [&](const auto& other) {
          return other.get() != &request && HoldsMemory(*other);
        });
    if (!alone) {
      Preempt(request);
      return std::nullopt;
    }
    const SteadyTime now = std::chrono::steady_clock::now();
    if (request.stalled_since == SteadyTime()) request.stalled_since = now;
    const bool never =
        WorkingSetBytes(engine_, *request.codec, request.target_rows()) >
        deps_.memory->cap_bytes();
    if (never || now - request.stalled_since > kStallLimit) {
      FailOrCut(
          request,
          WithReason(
              absl::ResourceExhaustedError(absl::StrCat(
                  "no memory for a working set of ", request.tokens.size(),
                  " tokens: ", deps_.memory->used_bytes(), " bytes of ",
                  deps_.memory->cap_bytes(), " are in use")),
              Reason::kOutOfMemory));
    }
    return std::nullopt;
  }
}

void Scheduler::ShrinkTo(const KvBlock& block, MemoryReservation* memory) {
  const auto bytes = static_cast<int64_t>(block.bytes());
  if (bytes < memory->bytes()) memory->Resize(bytes);
}

// Drops everything a running request has in memory and puts it back to the
// front of the queue. It goes on where it was, from pages and its tokens.
void Scheduler::Preempt(ActiveRequest& request) {
  metrics_.Add(CoreCounter::kPreemptions, 1);
  const auto it =
      std::find_if(running_.begin(), running_.end(),
                   [&](const auto& other) { return other.get() == &request; });
  std::shared_ptr<ActiveRequest> owner = std::move(*it);
  running_.erase(it);
  planner_.LandAll(request);
  request.live.Drop(cache_.Tick());
  request.next_block.Release();
  request.EndLoad();
  request.preempted = true;
  request.no_restore_before = 0;
  request.state = RequestState::kQueued;
  progress_ = true;  // its flights are others' now
  hold_admission_ = true;
  const auto place =
      std::find_if(queue_.begin(), queue_.end(), [&](const auto& other) {
        return !other->preempted || other->order > request.order;
      });
  queue_.insert(place, std::move(owner));
}

// What the budget calls, on whatever thread reserves. Sequences may only go on
// the scheduler's thread: elsewhere blocks that nobody holds go now, and the
// scheduler is asked for the rest.
int64_t Scheduler::Reclaim(int64_t wanted_bytes, bool all) {
  if (!all) {
    const int64_t used = deps_.memory->used_bytes(MemoryAccount::kWorkingSets) +
                         deps_.memory->used_bytes(MemoryAccount::kSequences);
    wanted_bytes = std::min(wanted_bytes, used - deps_.memory->cap_bytes() / 2);
    if (wanted_bytes <= 0) return 0;
  }
  if (thread_id_.load() != std::this_thread::get_id()) {
    const int64_t freed = cache_.Evict(wanted_bytes);
    if (freed < wanted_bytes && idle_.size() > 0) {
      wanted_idle_bytes_ += wanted_bytes - freed;
      Wake();
    }
    return freed;
  }
  int64_t freed = 0;
  while (freed < wanted_bytes) {
    const bool idle_first = idle_.OldestTick() <= cache_.OldestTick();
    const int64_t bytes =
        idle_first && idle_.size() > 0 ? idle_.DropOldest() : cache_.Evict(1);
    if (bytes == 0) break;
    freed += bytes;
  }
  return freed;
}

bool Scheduler::MakeRoomOnDevice() {
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  if (Reclaim(kAll, /*all=*/true) > 0) return true;
  ActiveRequest* youngest = nullptr;
  int holders = 0;
  for (const std::shared_ptr<ActiveRequest>& request : running_) {
    if (!HoldsMemory(*request)) continue;
    youngest = request.get();
    ++holders;
  }
  if (holders < 2) return false;
  Preempt(*youngest);
  Reclaim(kAll, /*all=*/true);
  return true;
}

void Scheduler::DropWantedIdle() {
  const int64_t wanted = wanted_idle_bytes_.exchange(0);
  if (wanted > 0) Reclaim(wanted, /*all=*/true);
}

}  // namespace xcache
