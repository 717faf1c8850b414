#include "cachestore/tiers/memory_page_store.h"

#include <utility>

namespace xcache {

MemoryPageStore::MemoryPageStore(MemoryBudget& budget, int reclaim_priority,
                                 EvictFn on_evict)
    : on_evict_(std::move(on_evict)),
      registration_(budget.AddReclaimer(
          "host pages", reclaim_priority,
          [this](int64_t wanted_bytes) { return Evict(wanted_bytes); })) {}

MemoryPageStore::~MemoryPageStore() { registration_.Reset(); }

absl::StatusOr<PageHit> MemoryPageStore::Get(const PageKey& key) {
  MutexLock lock(mu_);
  const auto it = pages_.find(key);
  if (it == pages_.end()) {
    ++stats_.misses;
    return absl::NotFoundError("no such page in host memory");
  }
  index_.Touch(key, Tick());
  ++stats_.hits;
  stats_.get_bytes += static_cast<int64_t>(it->second->bytes().size());
  return PageHit{it->second, tier()};
}

PageRef MemoryPageStore::Peek(const PageKey& key) const {
  MutexLock lock(mu_);
  const auto it = pages_.find(key);
  return it == pages_.end() ? nullptr : it->second;
}

absl::Status MemoryPageStore::Put(const PageRef& page) {
  PutOrGet(page);
  return absl::OkStatus();
}

PageRef MemoryPageStore::PutOrGet(const PageRef& page) {
  MutexLock lock(mu_);
  const auto [it, is_new] = pages_.try_emplace(page->key(), page);
  if (!is_new) {
    index_.Touch(page->key(), Tick());
    if (it->second->bytes() != page->bytes()) ++stats_.key_conflicts;
    return it->second;
  }
  const auto num_bytes = static_cast<int64_t>(page->bytes().size());
  index_.Add(page->key(), page->parent(), num_bytes, /*crc=*/0, Tick());
  ++stats_.puts;
  stats_.put_bytes += num_bytes;
  return page;
}

bool MemoryPageStore::Contains(const PageKey& key) const {
  MutexLock lock(mu_);
  return pages_.contains(key);
}

PageRef MemoryPageStore::TakeOut(const PageKey& key) {
  const auto it = pages_.find(key);
  if (it == pages_.end()) return nullptr;
  PageRef page = std::move(it->second);
  pages_.erase(it);
  index_.Remove(key);
  return page;
}

absl::Status MemoryPageStore::Erase(const PageKey& key) {
  PageRef page;
  MutexLock lock(mu_);
  page = TakeOut(key);
  return absl::OkStatus();
}

int64_t MemoryPageStore::Evict(int64_t wanted_bytes) {
  int64_t freed = 0;
  while (freed < wanted_bytes) {
    PageRef page;
    {
      MutexLock lock(mu_);
      // Only this store can hand out a reference to a page that no one else
      // has, and it does so under this lock.
      const auto victim =
          index_.Victim([this](const PageKey& key) XC_REQUIRES(mu_) {
            return pages_.find(key)->second.use_count() == 1;
          });
      if (!victim) break;
      page = TakeOut(*victim);
      ++stats_.evictions;
      stats_.evicted_bytes += static_cast<int64_t>(page->bytes().size());
    }
    if (on_evict_) on_evict_(page);
    freed += PageMemoryBytes(page->bytes().size());
  }
  return freed;
}

int64_t MemoryPageStore::Drop(std::span<const PageKey> keys) {
  int64_t freed = 0;
  for (size_t i = keys.size(); i > 0; --i) {
    PageRef page;
    {
      MutexLock lock(mu_);
      const auto it = pages_.find(keys[i - 1]);
      if (it == pages_.end() || it->second.use_count() > 1 ||
          !index_.IsLeaf(keys[i - 1])) {
        continue;
      }
      page = TakeOut(keys[i - 1]);
      ++stats_.evictions;
      stats_.evicted_bytes += static_cast<int64_t>(page->bytes().size());
    }
    if (on_evict_) on_evict_(page);
    freed += PageMemoryBytes(page->bytes().size());
  }
  return freed;
}

PageStoreStats MemoryPageStore::stats() const {
  MutexLock lock(mu_);
  PageStoreStats stats = stats_;
  stats.num_pages = index_.num_pages();
  stats.page_bytes = index_.page_bytes();
  return stats;
}

}  // namespace xcache
