// A bounded map from page keys to what is known of them: the older half of it
// is forgotten when it is full. Not thread-safe.
#ifndef XCACHE_CACHESTORE_SHARED_RECENT_KEYS_H_
#define XCACHE_CACHESTORE_SHARED_RECENT_KEYS_H_

#include <cstddef>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "cachestore/page_key.h"

namespace xcache {

template <typename Value>
class RecentKeys {
 public:
  // Holds `max_keys` at most, and never forgets the last half of them.
  explicit RecentKeys(size_t max_keys) : half_((max_keys + 1) / 2) {}

  void Set(const PageKey& key, Value value) {
    older_.erase(key);
    newer_.insert_or_assign(key, std::move(value));
    if (newer_.size() < half_) return;
    older_ = std::move(newer_);
    newer_.clear();
  }
  // Null: not known. Until the next change.
  const Value* Find(const PageKey& key) const {
    for (const auto* keys : {&newer_, &older_}) {
      if (const auto it = keys->find(key); it != keys->end()) {
        return &it->second;
      }
    }
    return nullptr;
  }
  void Erase(const PageKey& key) {
    newer_.erase(key);
    older_.erase(key);
  }
  size_t size() const { return newer_.size() + older_.size(); }
  template <typename Fn>
  void ForEach(const Fn& fn) const {
    for (const auto* keys : {&newer_, &older_}) {
      for (const auto& [key, value] : *keys) fn(key, value);
    }
  }

 private:
  using Keys = absl::flat_hash_map<PageKey, Value, DigestHash>;
  const size_t half_;
  Keys newer_, older_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_RECENT_KEYS_H_
