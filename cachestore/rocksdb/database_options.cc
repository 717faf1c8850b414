// RocksDB's options: bounded memory, bounded disk, and where its log lines go.
#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "cachestore/rocksdb/database.h"
#include "engine/base/log.h"
#include "rocksdb/cache.h"
#include "rocksdb/filter_policy.h"
#include "rocksdb/table.h"

namespace xcache {
namespace {

// RocksDB's own log lines, in ours, of level debug: what is to be done about
// them is said where it is done. It would write them to a file of its own
// beside the data, and a build with assertions stops the process where that
// file meets a full disk.
class InfoLog : public rocksdb::Logger {
 public:
  explicit InfoLog(std::string path)
      : Logger(rocksdb::InfoLogLevel::WARN_LEVEL), path_(std::move(path)) {}
  ~InfoLog() override { Close().PermitUncheckedError(); }

  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    std::array<char, 512> line;
    std::vsnprintf(line.data(), line.size(), format, arguments);
    XC_LOG_DEBUG("rocksdb", "path={} message={}", LogValue(path_),
                 LogValue(std::string(line.data())));
  }

 private:
  const std::string path_;
};

}  // namespace

std::string_view DatabaseName(DatabaseKind kind) {
  return kind == DatabaseKind::kSessions ? "sessions" : "pages";
}

DatabaseResources::DatabaseResources(int64_t cache_bytes,
                                     int64_t compaction_bytes_per_s)
    : statistics(rocksdb::CreateDBStatistics()) {
  rocksdb::LRUCacheOptions options;
  options.capacity = static_cast<size_t>(cache_bytes);
  options.num_shard_bits = 2;
  cache = rocksdb::NewLRUCache(options);
  // Memtables are charged to the cache, so the cache is the cap.
  memtables = std::make_shared<rocksdb::WriteBufferManager>(
      static_cast<size_t>(cache_bytes / 2), cache);
  if (compaction_bytes_per_s > 0) {
    rate_limiter.reset(rocksdb::NewGenericRateLimiter(compaction_bytes_per_s));
  }
  statistics->set_stats_level(rocksdb::StatsLevel::kExceptDetailedTimers);
}

rocksdb::Options MakeRocksDbOptions(DatabaseKind kind,
                                    const DatabaseResources& resources,
                                    const DiskPlan& plan,
                                    const std::string& path) {
  const bool is_pages = kind == DatabaseKind::kPages;
  rocksdb::Options o;
  o.create_if_missing = true;
  o.info_log = std::make_shared<InfoLog>(path);
  o.paranoid_checks = true;
  if (is_pages) {
    // What was not synced may be gone or torn. Each page says itself whether it
    // is whole, so what is around the damage is kept.
    o.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  } else {
    // A torn last record is what kill -9 leaves behind. Damage before intact
    // records is not, and must not go unnoticed (open_check.h).
    o.wal_recovery_mode =
        rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
    // A synced log that is missing is found out.
    o.track_and_verify_wals_in_manifest = true;
  }

  o.write_buffer_manager = resources.memtables;
  const int64_t write_buffer =
      is_pages ? plan.write_buffer : plan.session_write_buffer;
  o.write_buffer_size = static_cast<size_t>(write_buffer);
  o.max_write_buffer_number = 2;
  o.arena_block_size =
      static_cast<size_t>(std::min<int64_t>(write_buffer / 8, 256 << 10));
  o.max_open_files = is_pages ? 192 : 64;
  o.table_cache_numshardbits = 2;

  // Disk. Files are as long as what is in them, and logs of RocksDB's own stay
  // small: the cap counts them.
  o.allow_fallocate = false;
  o.max_total_wal_size = static_cast<uint64_t>(2 * write_buffer);
  o.manifest_preallocation_size = 0;
  o.max_manifest_file_size = 1 << 20;
  o.stats_dump_period_sec = 0;
  o.stats_persist_period_sec = 0;

  // One flush and one compaction at a time: the service needs the cores.
  o.max_background_jobs = 2;
  o.rate_limiter = resources.rate_limiter;
  o.bytes_per_sync = 1 << 20;
  o.statistics = resources.statistics;

  rocksdb::BlockBasedTableOptions table;
  table.block_cache = resources.cache;
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  o.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  if (!is_pages) {
    o.compression = rocksdb::CompressionType::kLZ4Compression;
    return o;
  }
  // Codes are dense: nothing to be gained.
  o.compression = rocksdb::CompressionType::kNoCompression;
  o.blob_compression_type = rocksdb::CompressionType::kNoCompression;
  o.enable_blob_files = true;
  o.min_blob_size = 1024;
  o.blob_file_size = static_cast<uint64_t>(plan.write_buffer);
  o.enable_blob_garbage_collection = true;
  o.blob_garbage_collection_age_cutoff = plan.gc_cutoff;
  o.blob_garbage_collection_force_threshold = 0.5;
  return o;
}

}  // namespace xcache
