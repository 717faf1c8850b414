// Keys of pages that a remote tier is still to get, in the order in which they
// fell behind: bounded, the oldest are forgotten first. Thread-safe.
#ifndef XCACHE_CACHESTORE_TIERS_OWED_PAGES_H_
#define XCACHE_CACHESTORE_TIERS_OWED_PAGES_H_

#include <cstddef>
#include <deque>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "cachestore/page_key.h"
#include "engine/base/mutex.h"

namespace xcache {

class OwedPages {
 public:
  // What one costs in memory, about.
  static constexpr size_t kKeyBytes = 96;

  explicit OwedPages(size_t max_pages) : max_pages_(max_pages) {}

  void Add(const PageKey& key) {
    MutexLock lock(mu_);
    if (!keys_.insert(key).second) return;
    order_.push_back(key);
    if (order_.size() <= max_pages_) return;
    keys_.erase(order_.front());
    order_.pop_front();
  }
  // The first of them. Nothing: none is owed.
  std::optional<PageKey> Take() {
    MutexLock lock(mu_);
    if (order_.empty()) return std::nullopt;
    const PageKey key = order_.front();
    order_.pop_front();
    keys_.erase(key);
    return key;
  }
  size_t size() const {
    MutexLock lock(mu_);
    return order_.size();
  }

 private:
  const size_t max_pages_;
  mutable Mutex mu_;
  std::deque<PageKey> order_ XC_GUARDED_BY(mu_);
  absl::flat_hash_set<PageKey, DigestHash> keys_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_OWED_PAGES_H_
