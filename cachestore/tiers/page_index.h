// Which pages a store holds, and which of them goes next: leaves before their
// parents, the least recently used first, and none that is claimed (rule R2).
// Bookkeeping alone: no bytes, no locks, no files. Not thread-safe.
#ifndef XCACHE_CACHESTORE_TIERS_PAGE_INDEX_H_
#define XCACHE_CACHESTORE_TIERS_PAGE_INDEX_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "cachestore/page_key.h"

namespace xcache {

class PageIndex {
 public:
  struct Entry {
    PageKey parent{};
    int64_t num_bytes = 0;
    uint32_t crc = 0;       // of the page's bytes, where its store wants one
    uint64_t last_use = 0;  // ever rising; in microseconds, roughly
  };

  // What an entry costs in memory, its place in the order included.
  static constexpr int64_t kEntryBytes = 256;

  // REQUIRES: not there yet.
  void Add(const PageKey& key, const PageKey& parent, int64_t num_bytes,
           uint32_t crc, uint64_t last_use);
  // False: was not there. Its claims and its children's links stay.
  bool Remove(const PageKey& key);
  // Null: not there. Valid until the next change.
  const Entry* Find(const PageKey& key) const;
  bool Contains(const PageKey& key) const { return Find(key) != nullptr; }
  // How many pages that are there have it as their parent.
  int num_children(const PageKey& key) const;
  bool IsLeaf(const PageKey& key) const { return num_children(key) == 0; }
  bool IsClaimed(const PageKey& key) const;
  // Makes it the most recently used of all, at `last_use`, which never goes
  // back. Nothing where it is not there.
  void Touch(const PageKey& key, uint64_t last_use);

  // A claimed page is never a victim, nor is any of its ancestors. Claims
  // count, and may be made before the page is there.
  void Claim(const PageKey& key);
  void Unclaim(const PageKey& key);

  // The first page in the order of eviction that `may_go` agrees to.
  std::optional<PageKey> Victim(
      const std::function<bool(const PageKey&)>& may_go) const;

  int64_t num_pages() const { return num_pages_; }
  int64_t page_bytes() const { return page_bytes_; }
  // Pages that could be victims now.
  int64_t num_candidates() const {
    return static_cast<int64_t>(candidates_.size());
  }

 private:
  // There is a node for each page that is present, is someone's parent, or is
  // claimed.
  struct Node {
    Entry entry;
    int32_t num_children = 0;  // present ones
    int32_t num_claims = 0;
    bool present = false;
  };
  using Order = std::set<std::pair<uint64_t, PageKey>>;

  static bool IsCandidate(const Node& node) {
    return node.present && node.num_children == 0 && node.num_claims == 0;
  }
  // Applies `change` to a key's node and keeps candidates_ and nodes_ true.
  template <typename Fn>
  void Update(const PageKey& key, const Fn& change);

  absl::flat_hash_map<PageKey, Node, DigestHash> nodes_;
  Order candidates_;
  int64_t num_pages_ = 0;
  int64_t page_bytes_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_PAGE_INDEX_H_
