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
  writer.Set(Metric::kLastBackupTime,
             static_cast<double>(files.last_backup_ms) / 1000);
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

double StateValue(CircuitBreaker::State state) {
  switch (state) {
    case CircuitBreaker::State::kClosed:
      return 0;
    case CircuitBreaker::State::kHalfOpen:
      return 1;
    case CircuitBreaker::State::kOpen:
      break;
  }
  return 2;
}

void SampleClient(const SharedClientStats& client, std::string_view objects,
                  SampleWriter& writer) {
  const ObjectStoreStats& stats = client.objects;
  const auto set = [&](Metric metric, int64_t value) {
    writer.Set(metric, static_cast<double>(value), {objects});
  };
  writer.Set(Metric::kSharedBreakerState, StateValue(client.breaker),
             {objects});
  set(Metric::kSharedBreakerOpened, client.breaker_opened);
  set(Metric::kSharedRequests, stats.requests);
  set(Metric::kSharedFailures, stats.failures);
  set(Metric::kSharedRetries, stats.retries);
  set(Metric::kSharedThrottled, stats.throttled);
  const auto bytes = [&](std::string_view direction, int64_t value) {
    writer.Set(Metric::kSharedBytes, static_cast<double>(value),
               {objects, direction});
  };
  bytes("sent", stats.sent_bytes);
  bytes("received", stats.received_bytes);
}

// Zeros where there is no such tier.
void SampleShared(const StoreStats& stats, SampleWriter& writer) {
  const SharedPageStats shared = stats.shared_pages.value_or(SharedPageStats());
  SampleClient(shared, "pages", writer);
  SampleClient(stats.shared_sessions.value_or(SharedClientStats()), "sessions",
               writer);
  Set(writer, Metric::kSharedAheadSessions, stats.sessions.num_ahead);
  Set(writer, Metric::kSharedConflicts, stats.sessions.conflicts);
  Set(writer, Metric::kSharedBranches, stats.sessions.branches);
  Set(writer, Metric::kSharedNegativeHits, shared.negative_hits);
  Set(writer, Metric::kSharedRefreshed, shared.refreshed);
  Set(writer, Metric::kSharedSweptFolders, shared.folders_swept);
  Set(writer, Metric::kSharedSweptPages, shared.pages_swept);
  Set(writer, Metric::kSharedOwedPages, stats.owed_pages);
  const PageStoreStats pages = stats.tier(PageTier::kShared);
  Set(writer, Metric::kSharedQueueBytes, pages.queued_bytes);
  Set(writer, Metric::kSharedDroppedPages, pages.put_failures);
  const auto bytes = [&](std::string_view direction, int64_t value) {
    writer.Set(Metric::kSharedPageBytes, static_cast<double>(value),
               {direction});
  };
  bytes("sent", pages.put_bytes);
  bytes("received", pages.get_bytes);
}

}  // namespace

void SampleStore(const StoreStats& stats, SampleWriter& writer) {
  // A tier that this server has none of is there, with zeros.
  for (const PageTier tier :
       {PageTier::kHost, PageTier::kDisk, PageTier::kShared}) {
    SampleTier(stats.tier(tier), tier.name, writer);
  }
  PageStoreStats below;  // this machine's tiers but host memory
  int64_t key_conflicts = 0;
  for (const auto& [tier, pages] : stats.tiers) {
    key_conflicts += pages.key_conflicts;
    if (tier == PageTier::kHost || tier == PageTier::kShared) continue;
    if (tier != PageTier::kDisk) SampleTier(pages, tier.name, writer);
    below.put_bytes += pages.put_bytes;
    below.get_bytes += pages.get_bytes;
    below.put_failures += pages.put_failures;
    below.queued_bytes += pages.queued_bytes;
  }
  SampleFiles(stats.files, writer);
  SampleShared(stats, writer);
  Set(writer, Metric::kSpillBytes, below.put_bytes);
  Set(writer, Metric::kLoadBytes, below.get_bytes);
  Set(writer, Metric::kSpillDroppedPages, below.put_failures);
  Set(writer, Metric::kSpillQueueBytes, below.queued_bytes);
  Set(writer, Metric::kUndurableSessions, stats.sessions.num_undurable);
  writer.Set(Metric::kLastCommitTime,
             static_cast<double>(stats.sessions.last_commit_ms) / 1000);
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
