#include "cachestore/tiers/write_behind.h"

#include <utility>
#include <vector>

namespace xcache {

WriteBehind::WriteBehind(PageStore& store, int64_t queue_bytes)
    : store_(store),
      queue_bytes_limit_(queue_bytes),
      writer_([this] { WriterLoop(); }) {}

WriteBehind::~WriteBehind() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  writer_.join();
}

void WriteBehind::Put(const PageRef& page) {
  const auto num_bytes = static_cast<int64_t>(page->bytes().size());
  {
    MutexLock lock(mu_);
    if (queued_bytes_ + num_bytes <= queue_bytes_limit_) {
      queued_[page->key()] = queue_.insert(queue_.end(), page);
      queued_bytes_ += num_bytes;
      changed_.SignalAll();
      return;
    }
  }
  Write(page);
}

PageRef WriteBehind::TakeLocked(Queue::iterator it) {
  PageRef page = std::move(*it);
  queue_.erase(it);
  queued_.erase(page->key());
  queued_bytes_ -= static_cast<int64_t>(page->bytes().size());
  writing_.insert(page->key());
  return page;
}

void WriteBehind::Write(const PageRef& page) {
  store_.Put(page).IgnoreError();
  MutexLock lock(mu_);
  writing_.erase(page->key());
  changed_.SignalAll();
}

void WriteBehind::WriteOut(std::span<const PageKey> keys) {
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

void WriteBehind::Flush() {
  std::vector<PageKey> keys;
  {
    MutexLock lock(mu_);
    for (const PageRef& page : queue_) keys.push_back(page->key());
    keys.insert(keys.end(), writing_.begin(), writing_.end());
  }
  WriteOut(keys);
}

void WriteBehind::Forget(const PageKey& key) {
  PageRef dropped;  // its memory goes without the lock
  MutexLock lock(mu_);
  while (writing_.contains(key)) changed_.Wait(mu_);
  if (const auto it = queued_.find(key); it != queued_.end()) {
    dropped = TakeLocked(it->second);
    writing_.erase(key);
    changed_.SignalAll();
  }
}

void WriteBehind::WriterLoop() {
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

void WriteBehind::AddStats(PageStoreStats* stats) const {
  MutexLock lock(mu_);
  stats->queued_pages += static_cast<int64_t>(queue_.size());
  stats->queued_bytes += queued_bytes_;
}

}  // namespace xcache
