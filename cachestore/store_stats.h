// What the store knows of itself, for metrics: a snapshot.
#ifndef XCACHE_CACHESTORE_STORE_STATS_H_
#define XCACHE_CACHESTORE_STORE_STATS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cachestore/page_store.h"
#include "cachestore/session_store.h"
#include "cachestore/shared/shared_page_store.h"

namespace xcache {

struct TierStats {
  PageTier tier;
  PageStoreStats pages;
};

// The files of the store, and RocksDB's own figures.
struct DiskStats {
  bool present = false;   // there is a disk tier
  bool degraded = false;  // writes have stopped: disk full or failing
  std::string degraded_reason;
  int64_t degraded_total = 0;  // how often it became so
  int64_t cap_bytes = 0;
  int64_t used_bytes = 0;  // everything in the folder
  int64_t free_bytes = 0;  // of the file system
  int64_t live_bytes = 0;  // of pages that can be found
  int64_t wal_bytes = 0;
  int64_t sst_bytes = 0;
  int64_t blob_bytes = 0;
  int64_t blob_garbage_bytes = 0;
  int64_t compactions = 0;  // forced by the cap
  int64_t wal_syncs = 0;
  int64_t torn_logs = 0;        // at the start: the log's end was rubbish
  int64_t pages_set_aside = 0;  // a damaged database of pages, begun anew
  int64_t last_backup_ms = 0;   // Unix time; 0: there was none
  int64_t block_cache_bytes = 0;
  int64_t memtable_bytes = 0;
  int64_t table_reader_bytes = 0;
  int64_t stall_us = 0;
  int64_t background_errors = 0;
  // RocksDB's tickers by their own names ("rocksdb.bytes.written", ...).
  std::vector<std::pair<std::string, int64_t>> tickers;
};

struct StoreStats {
  std::vector<TierStats> tiers;  // the fastest first
  SessionStoreStats sessions;
  DiskStats files;
  std::optional<SharedClientStats> shared_sessions;
  std::optional<SharedPageStats> shared_pages;  // nothing: no shared tier
  int64_t owed_pages = 0;  // that the shared tier is still to get

  // Of one tier; zeros: there is no such tier.
  PageStoreStats tier(PageTier which) const {
    for (const TierStats& stats : tiers) {
      if (stats.tier == which) return stats.pages;
    }
    return {};
  }
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_STORE_STATS_H_
