#include "server/core/scheduler/remote_pages.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/types.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

}  // namespace

void RemotePages::Ask(ActiveRequest& request, const Digest& cache_fp) {
  if (request.remote.asked || request.options.no_cache ||
      restore_ == ServerCoreOptions::Restore::kNever) {
    return;
  }
  request.remote.asked = true;
  const std::vector<PageKey>* promised = nullptr;
  int64_t end = request.reusable_blocks();
  if (request.lease != nullptr) {
    const SessionRecord& record = request.lease->record();
    // Of another model: it will be refused.
    if (record.cache_fp != cache_fp && !record.page_keys.empty()) return;
    promised = &record.page_keys;
    // What comes behind a session's history is new.
    if (!promised->empty()) {
      end = std::min(end, static_cast<int64_t>(promised->size()));
    }
  }
  int64_t first = 0;
  for (; first < end; ++first) {
    const PageKey& key = request.KeyOfBlock(first, cache_fp);
    if (!blocks_.Contains(key) && !store_.pages().Contains(key)) break;
  }
  if (first == end) return;
  if (restore_ == ServerCoreOptions::Restore::kByCost &&
      !rates_.PreferFetch(end - first)) {
    metrics_.Add(CoreCounter::kNotFetchedByCost,
                 static_cast<uint64_t>(end - first));
    return;
  }
  PrefetchRequest prefetch;
  for (int64_t i = first; i < end; ++i) {
    const PageKey& key = request.KeyOfBlock(i, cache_fp);
    const auto at = static_cast<size_t>(i);
    if (prefetch.num_promised == prefetch.keys.size() && promised != nullptr &&
        at < promised->size() && (*promised)[at] == key) {
      ++prefetch.num_promised;
    }
    prefetch.keys.push_back(key);
  }
  prefetch.wake = wake_;
  request.remote.prefetch = store_.Prefetch(std::move(prefetch));
}

bool RemotePages::MustWait(ActiveRequest& request, const PageKey& key) {
  RemoteWait& remote = request.remote;
  if (remote.prefetch == nullptr) return false;
  remote.prefetch->Reached(key);
  if (remote.prefetch->StateOf(key) != PagePrefetch::State::kComing) {
    return false;
  }
  const SteadyTime now = steady_clock::now();
  const double waited =
      remote.waited_seconds +
      (remote.began == SteadyTime() ? 0.0 : SecondsBetween(remote.began, now));
  const bool is_likely = remote.prefetch->IsPromised(key) ||
                         remote.prefetch->timing().num_pages > 0;
  const auto bound = is_likely ? longest_wait_ : longest_wait_for_unknown_;
  const double left = std::chrono::duration<double>(bound).count() +
                      remote.saved_seconds - waited;
  if (left <= 0) return false;
  if (remote.began == SteadyTime()) remote.began = now;
  // An answer may take long, but who waits for it looks again.
  remote.until =
      now + std::chrono::duration_cast<steady_clock::duration>(
                std::chrono::duration<double>(std::min(left, 3600.0)));
  return true;
}

void RemotePages::EndWait(ActiveRequest& request) {
  RemoteWait& remote = request.remote;
  if (remote.began == SteadyTime()) return;
  const SteadyTime now = steady_clock::now();
  remote.waited_seconds += SecondsBetween(remote.began, now);
  request.final.timings.restore_us += MicrosBetween(remote.began, now);
  remote.began = remote.until = SteadyTime();
}

bool RemotePages::Used(ActiveRequest& request, const PageKey& key) {
  RemoteWait& remote = request.remote;
  if (remote.prefetch == nullptr || !remote.prefetch->Brought(key)) {
    return false;
  }
  const Rates::Values rates = rates_.values();
  remote.saved_seconds +=
      std::max(0.0, kBlockTokens * rates.prefill_token - rates.remat_block -
                        rates.load_block_host);
  return true;
}

void RemotePages::Finish(ActiveRequest& request) {
  RemoteWait& remote = request.remote;
  EndWait(request);
  if (remote.prefetch == nullptr) return;
  const PagePrefetch::Timing timing = remote.prefetch->timing();
  rates_.AddFetch(timing.num_pages, timing.first_seconds, timing.last_seconds);
  if (remote.waited_seconds > 0) {
    metrics_.Observe(CoreHistogram::kRemoteWait, remote.waited_seconds);
  }
  remote.prefetch.reset();
}

}  // namespace xcache
