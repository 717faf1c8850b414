#include "cachestore/tiers/write_behind.h"

#include <utility>

namespace xcache {

WriteBehind::WriteBehind(PageStore& store, WriteBehindOptions options)
    : store_(store), options_(std::move(options)) {
  for (int i = 0; i < options_.num_writers; ++i) {
    writers_.emplace_back([this] { WriterLoop(); });
  }
}

WriteBehind::~WriteBehind() {
  if (options_.is_remote) Flush();
  Queue left;
  {
    MutexLock lock(mu_);
    stop_ = true;
    if (options_.is_remote) {
      left.swap(queue_);
      queued_.clear();
      queued_bytes_ = 0;
    }
    changed_.SignalAll();
  }
  for (std::thread& writer : writers_) writer.join();
}

void WriteBehind::Put(const PageRef& page) {
  const auto num_bytes = static_cast<int64_t>(page->bytes().size());
  {
    MutexLock lock(mu_);
    if (queued_.contains(page->key())) return;
    if (queued_bytes_ + num_bytes <= options_.queue_bytes) {
      queued_[page->key()] = queue_.insert(queue_.end(), page);
      queued_bytes_ += num_bytes;
      changed_.SignalAll();
      return;
    }
  }
  if (options_.is_remote) {
    Drop(page->key());
  } else {
    Write(page);
  }
}

void WriteBehind::Drop(const PageKey& key) {
  {
    MutexLock lock(mu_);
    ++num_dropped_;
  }
  if (options_.dropped) options_.dropped(key);
}

PageRef WriteBehind::TakeLocked(Queue::iterator it) {
  PageRef page = std::move(*it);
  queue_.erase(it);
  queued_.erase(page->key());
  queued_bytes_ -= static_cast<int64_t>(page->bytes().size());
  writing_.insert(page->key());
  return page;
}

void WriteBehind::Write(const PageRef& page) { WriteTaken(page); }

void WriteBehind::WriteTaken(PageRef page) {
  const PageKey key = page->key();
  const absl::Status written = store_.Put(page);
  page.reset();  // who hears that it is written may drop it from memory
  {
    MutexLock lock(mu_);
    writing_.erase(key);
    changed_.SignalAll();
  }
  // The store has counted it.
  if (!written.ok() && options_.dropped) options_.dropped(key);
}

void WriteBehind::WriteOut(std::span<const PageKey> keys) {
  if (options_.is_remote) return;
  for (const PageKey& key : keys) {
    PageRef page;
    {
      MutexLock lock(mu_);
      if (const auto it = queued_.find(key); it != queued_.end()) {
        page = TakeLocked(it->second);
      }
    }
    if (page != nullptr) WriteTaken(std::move(page));
  }
  MutexLock lock(mu_);
  for (const PageKey& key : keys) {
    while (writing_.contains(key)) changed_.Wait(mu_);
  }
}

void WriteBehind::Flush() {
  if (options_.is_remote) {
    const auto until = std::chrono::steady_clock::now() + options_.patience;
    MutexLock lock(mu_);
    while (!queue_.empty() || !writing_.empty()) {
      const auto rest = until - std::chrono::steady_clock::now();
      if (rest <= std::chrono::steady_clock::duration::zero()) return;
      changed_.WaitFor(mu_, rest);
    }
    return;
  }
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
  while (!options_.is_remote && writing_.contains(key)) changed_.Wait(mu_);
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
    WriteTaken(std::move(page));
  }
}

bool WriteBehind::HasRoom() const {
  MutexLock lock(mu_);
  return queued_bytes_ <= options_.queue_bytes / 2;
}

void WriteBehind::AddStats(PageStoreStats* stats) const {
  MutexLock lock(mu_);
  stats->queued_pages += static_cast<int64_t>(queue_.size());
  stats->queued_bytes += queued_bytes_;
  stats->put_failures += num_dropped_;
}

}  // namespace xcache
