// A store of pages: immutable bytes under a content address (rule R2). It never
// looks into a page. Each tier is one: MemoryPageStore (host memory),
// DiskPageStore (RocksDB); and TieredPageStore, the list of them.
//
// Every store is thread-safe, and a fault in it is never a wrong page (rule
// R3): Get gives the bytes that were put, or an error. Whatever the error, the
// caller computes the page anew.
#ifndef XCACHE_CACHESTORE_PAGE_STORE_H_
#define XCACHE_CACHESTORE_PAGE_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/page_key.h"
#include "engine/base/memory_budget.h"

namespace xcache {

// A page in memory. Its bytes stay counted in the budget until the last
// reference goes. Immutable.
class Page {
 public:
  Page(const PageKey& key, const PageKey& parent, std::string bytes,
       MemoryReservation memory)
      : key_(key),
        parent_(parent),
        bytes_(std::move(bytes)),
        memory_(std::move(memory)) {}

  const PageKey& key() const { return key_; }
  const PageKey& parent() const { return parent_; }
  std::string_view bytes() const { return bytes_; }

 private:
  const PageKey key_;
  const PageKey parent_;
  const std::string bytes_;
  const MemoryReservation memory_;
};
using PageRef = std::shared_ptr<const Page>;

// What a page of `num_bytes` costs in memory, bookkeeping included.
int64_t PageMemoryBytes(size_t num_bytes);

// A page with its memory reserved (kHostPages), other pages being evicted where
// it has to be. RESOURCE_EXHAUSTED: it does not fit.
absl::StatusOr<PageRef> MakePage(MemoryBudget& budget, const PageKey& key,
                                 const PageKey& parent, std::string bytes);

// A tier, by its name in metrics. Open: one that is added brings its own.
struct PageTier {
  std::string_view name;

  bool operator==(const PageTier&) const = default;
  static const PageTier kHost;
  static const PageTier kDisk;
  static const PageTier kShared;
};
inline constexpr PageTier PageTier::kHost{"host"};
inline constexpr PageTier PageTier::kDisk{"disk"};
inline constexpr PageTier PageTier::kShared{"shared"};

struct PageHit {
  PageRef page;
  PageTier tier = PageTier::kHost;  // where it was found
};

// Counts since the store was opened, and what is in it now.
struct PageStoreStats {
  int64_t num_pages = 0;
  int64_t page_bytes = 0;  // of the pages, without any overhead
  int64_t hits = 0;
  int64_t misses = 0;
  int64_t puts = 0;  // pages that were new
  int64_t put_bytes = 0;
  int64_t get_bytes = 0;
  int64_t evictions = 0;
  int64_t evicted_bytes = 0;
  int64_t corrupt = 0;        // dropped because their bytes were damaged
  int64_t key_conflicts = 0;  // equal key, different bytes (the first stays)
  int64_t put_failures = 0;   // pages that were refused or failed to be put
  // Of a tier below host memory: how long its hits took, and what waits to be
  // put.
  int64_t get_us = 0;
  int64_t queued_pages = 0;
  int64_t queued_bytes = 0;
};

class PageStore {
 public:
  virtual ~PageStore() = default;

  // NOT_FOUND: no such page. DATA_LOSS: damaged; it is counted and dropped.
  // RESOURCE_EXHAUSTED: no memory for it. UNAVAILABLE: the disk fails.
  virtual absl::StatusOr<PageHit> Get(const PageKey& key) = 0;

  // Stores a page; OK also where it is there already. RESOURCE_EXHAUSTED: full,
  // and nothing could be evicted.
  virtual absl::Status Put(const PageRef& page) = 0;

  // Whether Get is expected to find it. Cheap: never reads the disk.
  virtual bool Contains(const PageKey& key) const = 0;

  // Where Get is expected to find it; nothing: nowhere. Cheap.
  virtual std::optional<PageTier> TierOf(const PageKey& key) const {
    if (!Contains(key)) return std::nullopt;
    return tier();
  }

  // How many of `keys`, from the first one on, Get is expected to find.
  virtual int64_t LongestPrefix(std::span<const PageKey> keys) const;

  // OK also where there is no such page.
  virtual absl::Status Erase(const PageKey& key) = 0;

  virtual PageStoreStats stats() const = 0;

  virtual PageTier tier() const { return PageTier::kHost; }
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_PAGE_STORE_H_
