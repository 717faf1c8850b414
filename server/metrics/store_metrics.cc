#include "server/metrics/store_metrics.h"

namespace xcache {
namespace {

void Set(SampleWriter& writer, Metric metric, int64_t value) {
  writer.Set(metric, static_cast<double>(value));
}

void SampleTier(const PageStoreStats& stats, std::string_view tier,
                SampleWriter& writer) {
  const auto set = [&](Metric metric, int64_t value) {
    writer.Set(metric, static_cast<double>(value), {tier});
  };
  set(Metric::kPages, stats.num_pages);
  set(Metric::kPageBytes, stats.page_bytes);
  set(Metric::kEvictions, stats.evictions);
  set(Metric::kPageHits, stats.hits);
  set(Metric::kPageMisses, stats.misses);
  set(Metric::kTierCorruptPages, stats.corrupt);
}

void SampleFiles(const DiskStats& files, SampleWriter& writer) {
  Set(writer, Metric::kDiskLimitBytes, files.cap_bytes);
  Set(writer, Metric::kDiskBytes, files.used_bytes);
  Set(writer, Metric::kDiskFreeBytes, files.free_bytes);
  Set(writer, Metric::kDiskDegraded, files.degraded ? 1 : 0);
  Set(writer, Metric::kDiskDegradations, files.degraded_total);
  Set(writer, Metric::kPagesSetAside, files.pages_set_aside);
  Set(writer, Metric::kTornLogs, files.torn_logs);
  Set(writer, Metric::kWalSyncs, files.wal_syncs);
  const auto property = [&](std::string_view name, int64_t value) {
    writer.Set(Metric::kRocksdbProperty, static_cast<double>(value), {name});
  };
  property("live_bytes", files.live_bytes);
  property("wal_bytes", files.wal_bytes);
  property("sst_bytes", files.sst_bytes);
  property("blob_bytes", files.blob_bytes);
  property("blob_garbage_bytes", files.blob_garbage_bytes);
  property("block_cache_bytes", files.block_cache_bytes);
  property("memtable_bytes", files.memtable_bytes);
  property("table_reader_bytes", files.table_reader_bytes);
  property("background_errors", files.background_errors);
  property("forced_compactions", files.compactions);
  property("stall_us", files.stall_us);
  for (const auto& [name, value] : files.tickers) {
    writer.Set(Metric::kRocksdbTicker, static_cast<double>(value), {name});
  }
}

}  // namespace

void SampleStore(const StoreStats& stats, SampleWriter& writer) {
  // A tier that this server has none of is there, with zeros.
  for (const PageTier tier : {PageTier::kHost, PageTier::kDisk}) {
    SampleTier(stats.tier(tier), tier.name, writer);
  }
  PageStoreStats below;  // all tiers but host memory
  int64_t key_conflicts = 0;
  for (const auto& [tier, pages] : stats.tiers) {
    key_conflicts += pages.key_conflicts;
    if (tier == PageTier::kHost) continue;
    if (tier != PageTier::kDisk) SampleTier(pages, tier.name, writer);
    below.put_bytes += pages.put_bytes;
    below.get_bytes += pages.get_bytes;
    below.put_failures += pages.put_failures;
    below.queued_bytes += pages.queued_bytes;
  }
  SampleFiles(stats.files, writer);
  Set(writer, Metric::kSpillBytes, below.put_bytes);
  Set(writer, Metric::kLoadBytes, below.get_bytes);
  Set(writer, Metric::kSpillDroppedPages, below.put_failures);
  Set(writer, Metric::kSpillQueueBytes, below.queued_bytes);
  Set(writer, Metric::kUndurableSessions, stats.sessions.num_undurable);
  Set(writer, Metric::kDemotedSessions, stats.sessions.demoted);
  Set(writer, Metric::kMismatchedPages, key_conflicts);
}

void SampleMemory(const MemoryBudget& budget, SampleWriter& writer) {
  Set(writer, Metric::kMemoryLimitBytes, budget.cap_bytes());
  Set(writer, Metric::kMemoryPeakBytes, budget.peak_bytes());
  Set(writer, Metric::kMemoryRefusals, budget.num_refused());
  for (int i = 0; i < kNumMemoryAccounts; ++i) {
    const auto account = static_cast<MemoryAccount>(i);
    writer.Set(Metric::kMemoryBytes,
               static_cast<double>(budget.used_bytes(account)),
               {MemoryAccountName(account)});
  }
}

}  // namespace xcache
