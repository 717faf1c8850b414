#include "cachestore/tiers/tiered_page_store.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace xcache {

TieredPageStore::TieredPageStore(MemoryBudget& budget, int reclaim_priority,
                                 PageStore& disk, int64_t queue_bytes)
    : disk_(disk),
      queue_bytes_limit_(queue_bytes),
      host_(budget, reclaim_priority,
            [this](const PageRef& page) { OnEvict(page); }),
      writer_([this] { WriterLoop(); }) {}

TieredPageStore::~TieredPageStore() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  writer_.join();
}

absl::StatusOr<PageHit> TieredPageStore::Get(const PageKey& key) {
  absl::StatusOr<PageHit> hit = host_.Get(key);
  if (hit.ok()) return hit;
  hit = disk_.Get(key);
  if (!hit.ok()) {
    MutexLock lock(mu_);
    ++misses_;
    return hit;
  }
  hit->page = host_.PutOrGet(hit->page);
  MutexLock lock(mu_);
  ++spill_.loaded_pages;
  spill_.loaded_bytes += static_cast<int64_t>(hit->page->bytes().size());
  return hit;
}

absl::Status TieredPageStore::Put(const PageRef& offered) {
  const PageRef page = host_.PutOrGet(offered);
  if (page != offered) return absl::OkStatus();
  if (disk_.Contains(page->key())) {
    // So that it compares the bytes. It is in memory: what more is wanted.
    disk_.Put(page).IgnoreError();
    return absl::OkStatus();
  }
  const auto num_bytes = static_cast<int64_t>(page->bytes().size());
  {
    MutexLock lock(mu_);
    ++puts_;
    put_bytes_ += num_bytes;
    if (spill_.queued_bytes + num_bytes <= queue_bytes_limit_) {
      queued_[page->key()] = queue_.insert(queue_.end(), page);
      ++spill_.queued_pages;
      spill_.queued_bytes += num_bytes;
      changed_.SignalAll();
      return absl::OkStatus();
    }
  }
  Write(page);
  return absl::OkStatus();
}

bool TieredPageStore::Contains(const PageKey& key) const {
  return host_.Contains(key) || disk_.Contains(key);
}

absl::Status TieredPageStore::Erase(const PageKey& key) {
  PageRef dropped;
  {
    MutexLock lock(mu_);
    while (writing_.contains(key)) changed_.Wait(mu_);
    if (const auto it = queued_.find(key); it != queued_.end()) {
      dropped = TakeLocked(it->second);
      writing_.erase(key);
      changed_.SignalAll();
    }
  }
  const absl::Status erased = host_.Erase(key);
  if (!erased.ok()) return erased;
  return disk_.Erase(key);
}

PageStoreStats TieredPageStore::stats() const {
  const PageStoreStats host = host_.stats();
  const PageStoreStats disk = disk_.stats();
  PageStoreStats both = host;
  // Pages that are in both tiers are counted by the lower one, which has more.
  both.num_pages = std::max(host.num_pages, disk.num_pages);
  both.page_bytes = std::max(host.page_bytes, disk.page_bytes);
  both.hits = host.hits + disk.hits;
  both.get_bytes = host.get_bytes + disk.get_bytes;
  both.corrupt = host.corrupt + disk.corrupt;
  both.key_conflicts = host.key_conflicts + disk.key_conflicts;
  both.put_failures = host.put_failures + disk.put_failures;
  MutexLock lock(mu_);
  both.misses = misses_;
  both.puts = puts_;
  both.put_bytes = put_bytes_;
  return both;
}

PageRef TieredPageStore::TakeLocked(Queue::iterator it) {
  PageRef page = std::move(*it);
  queue_.erase(it);
  queued_.erase(page->key());
  --spill_.queued_pages;
  spill_.queued_bytes -= static_cast<int64_t>(page->bytes().size());
  writing_.insert(page->key());
  return page;
}

void TieredPageStore::Write(const PageRef& page) {
  const absl::Status written = disk_.Put(page);
  MutexLock lock(mu_);
  if (written.ok()) {
    ++spill_.spilled_pages;
    spill_.spilled_bytes += static_cast<int64_t>(page->bytes().size());
  } else {
    ++spill_.dropped_pages;
  }
  writing_.erase(page->key());
  changed_.SignalAll();
}

void TieredPageStore::WriteOut(std::span<const PageKey> keys) {
  for (const PageKey& key : keys) {
    PageRef page;
    {
      MutexLock lock(mu_);
      if (const auto it = queued_.find(key); it != queued_.end()) {
        page = TakeLocked(it->second);
      }
    }
    if (page != nullptr) Write(page);
  }
  MutexLock lock(mu_);
  for (const PageKey& key : keys) {
    while (writing_.contains(key)) changed_.Wait(mu_);
  }
}

void TieredPageStore::Flush() {
  std::vector<PageKey> keys;
  {
    MutexLock lock(mu_);
    for (const PageRef& page : queue_) keys.push_back(page->key());
    for (const PageKey& key : writing_) keys.push_back(key);
  }
  WriteOut(keys);
}

void TieredPageStore::WriterLoop() {
  for (;;) {
    PageRef page;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stop_) changed_.Wait(mu_);
      if (queue_.empty()) return;
      page = TakeLocked(queue_.begin());
    }
    Write(page);
  }
}

void TieredPageStore::OnEvict(const PageRef& page) {
  // A page that waits or is being written is referred to and so is not evicted;
  // what is neither there nor waiting was refused before.
  if (disk_.Contains(page->key())) return;
  Write(page);
}

SpillStats TieredPageStore::spill_stats() const {
  MutexLock lock(mu_);
  return spill_;
}

}  // namespace xcache
