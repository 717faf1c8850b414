// RocksDB's options: bounded memory, bounded disk, families.
#include <algorithm>
#include <utility>

#include "cachestore/rocksdb/database.h"
#include "rocksdb/cache.h"
#include "rocksdb/filter_policy.h"
#include "rocksdb/rate_limiter.h"
#include "rocksdb/statistics.h"
#include "rocksdb/table.h"
#include "rocksdb/write_buffer_manager.h"

namespace xcache {

std::string_view FamilyName(Family family) {
  switch (family) {
    case Family::kMeta:
      return "default";
    case Family::kPages:
      return "pages";
    case Family::kPageIndex:
      return "page_index";
    case Family::kSessions:
      return "sessions";
    case Family::kSessionIndex:
      return "session_index";
  }
  return "";
}

// No page key has this length, and no session key says a tenant of 255 bytes
// and then ends.
std::string_view FamilyMarker() {
  return "\xff"
         "family";
}

rocksdb::Options MakeRocksDbOptions(const StoreDbOptions& options,
                                    const DiskPlan& plan,
                                    std::shared_ptr<rocksdb::Cache> cache) {
  rocksdb::Options o;
  if (options.env != nullptr) o.env = options.env;
  o.create_if_missing = true;
  o.paranoid_checks = true;
  // A torn last record is what kill -9 leaves behind. Damage before intact
  // records is not, and must not go unnoticed: OpenRocksDb().
  o.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // A synced log that is missing is found out.
  o.track_and_verify_wals_in_manifest = true;

  // Memory. Memtables are charged to the cache, so the cache is the cap.
  o.write_buffer_manager = std::make_shared<rocksdb::WriteBufferManager>(
      static_cast<size_t>(options.rocksdb_bytes / 2), cache);
  o.write_buffer_size = static_cast<size_t>(plan.write_buffer);
  o.max_write_buffer_number = 2;
  o.arena_block_size =
      static_cast<size_t>(std::min<int64_t>(plan.write_buffer / 8, 256 << 10));
  o.max_open_files = 256;
  o.table_cache_numshardbits = 2;

  // Disk. Files are as long as what is in them, and logs of RocksDB's own stay
  // small: the cap counts them.
  o.allow_fallocate = false;
  o.max_total_wal_size = static_cast<uint64_t>(plan.max_wal);
  o.manifest_preallocation_size = 0;
  o.max_manifest_file_size = 1 << 20;
  o.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  o.max_log_file_size = 256 << 10;
  o.keep_log_file_num = 2;
  o.stats_dump_period_sec = 0;
  o.stats_persist_period_sec = 0;

  // One flush and one compaction at a time: the service needs the cores.
  o.max_background_jobs = 2;
  if (options.compaction_bytes_per_s > 0) {
    o.rate_limiter.reset(
        rocksdb::NewGenericRateLimiter(options.compaction_bytes_per_s));
  }
  o.bytes_per_sync = 1 << 20;
  o.statistics = rocksdb::CreateDBStatistics();
  o.statistics->set_stats_level(rocksdb::StatsLevel::kExceptDetailedTimers);

  rocksdb::BlockBasedTableOptions table;
  table.block_cache = std::move(cache);
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;                         // table_check.h
  table.checksum = rocksdb::ChecksumType::kCRC32c;  // table_check.h
  o.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  o.compression = rocksdb::CompressionType::kNoCompression;
  return o;
}

rocksdb::ColumnFamilyOptions MakeFamilyOptions(const rocksdb::Options& options,
                                               const DiskPlan& plan,
                                               Family family) {
  rocksdb::ColumnFamilyOptions cf(options);
  if (family == Family::kSessions) {
    cf.compression = rocksdb::CompressionType::kLZ4Compression;
  }
  if (family != Family::kPages) return cf;
  cf.enable_blob_files = true;
  cf.min_blob_size = 1024;
  cf.blob_file_size = static_cast<uint64_t>(plan.write_buffer);
  // Codes are dense: nothing to be gained.
  cf.blob_compression_type = rocksdb::CompressionType::kNoCompression;
  cf.enable_blob_garbage_collection = true;
  cf.blob_garbage_collection_age_cutoff = plan.gc_cutoff;
  cf.blob_garbage_collection_force_threshold = 0.5;
  return cf;
}

std::vector<rocksdb::ColumnFamilyDescriptor> DescribeFamilies(
    const rocksdb::Options& options, const DiskPlan& plan,
    const std::vector<std::string>& names) {
  std::vector<rocksdb::ColumnFamilyDescriptor> out;
  for (const std::string& name : names) {
    rocksdb::ColumnFamilyOptions cf(options);
    for (Family family : kFamilies) {
      if (FamilyName(family) == name) {
        cf = MakeFamilyOptions(options, plan, family);
      }
    }
    out.emplace_back(name, cf);
  }
  return out;
}

}  // namespace xcache
