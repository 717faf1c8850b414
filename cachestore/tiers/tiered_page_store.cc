#include "cachestore/tiers/tiered_page_store.h"

#include <algorithm>
#include <chrono>

namespace xcache {

TieredPageStore::TieredPageStore(MemoryBudget& budget, int reclaim_priority,
                                 const std::vector<PageStore*>& lower,
                                 int64_t queue_bytes)
    : host_(budget, reclaim_priority,
            [this](const PageRef& page) { OnEvict(page); }) {
  for (PageStore* store : lower) {
    lower_.push_back(std::make_unique<Lower>(*store, queue_bytes));
  }
}

absl::StatusOr<PageHit> TieredPageStore::Get(const PageKey& key) {
  absl::StatusOr<PageHit> hit = host_.Get(key);
  for (const auto& lower : lower_) {
    if (hit.ok()) return hit;
    const auto begin = std::chrono::steady_clock::now();
    hit = lower->store.Get(key);
    if (!hit.ok()) continue;
    lower->get_us += std::chrono::duration_cast<std::chrono::microseconds>(
                         std::chrono::steady_clock::now() - begin)
                         .count();
    hit->page = host_.PutOrGet(hit->page);
  }
  return hit;
}

absl::Status TieredPageStore::Put(const PageRef& offered) {
  const PageRef page = host_.PutOrGet(offered);
  if (page != offered) return absl::OkStatus();
  for (const auto& lower : lower_) {
    if (lower->store.Contains(page->key())) {
      // So that it compares the bytes. It is in memory: what more is wanted.
      lower->store.Put(page).IgnoreError();
    } else {
      lower->queue.Put(page);
    }
  }
  return absl::OkStatus();
}

bool TieredPageStore::Contains(const PageKey& key) const {
  return host_.Contains(key) ||
         std::any_of(lower_.begin(), lower_.end(), [&](const auto& lower) {
           return lower->store.Contains(key);
         });
}

int64_t TieredPageStore::LongestPrefix(std::span<const PageKey> keys) const {
  int64_t found = 0;
  int64_t before = 0;
  // One tier goes on where another ends.
  do {
    before = found;
    found += host_.LongestPrefix(keys.subspan(static_cast<size_t>(found)));
    for (const auto& lower : lower_) {
      found +=
          lower->store.LongestPrefix(keys.subspan(static_cast<size_t>(found)));
    }
  } while (found > before);
  return found;
}

absl::Status TieredPageStore::Erase(const PageKey& key) {
  for (const auto& lower : lower_) lower->queue.Forget(key);
  absl::Status erased = host_.Erase(key);
  for (const auto& lower : lower_) erased.Update(lower->store.Erase(key));
  return erased;
}

std::vector<TierStats> TieredPageStore::tier_stats() const {
  std::vector<TierStats> out = {{host_.tier(), host_.stats()}};
  for (const auto& lower : lower_) {
    TierStats& stats =
        out.emplace_back(TierStats{lower->store.tier(), lower->store.stats()});
    stats.pages.get_us = lower->get_us;
    lower->queue.AddStats(&stats.pages);
  }
  return out;
}

void TieredPageStore::Flush() {
  for (const auto& lower : lower_) lower->queue.Flush();
}

int64_t TieredPageStore::DropFromHost(std::span<const PageKey> keys) {
  if (lower_.empty()) return 0;  // they would be gone for good
  for (const auto& lower : lower_) lower->queue.WriteOut(keys);
  return host_.Drop(keys);
}

void TieredPageStore::OnEvict(const PageRef& page) {
  // A page that waits or is being written is referred to and so is not evicted;
  // what is neither there nor waiting was refused before.
  for (const auto& lower : lower_) {
    if (!lower->store.Contains(page->key())) lower->queue.Write(page);
  }
}

}  // namespace xcache
