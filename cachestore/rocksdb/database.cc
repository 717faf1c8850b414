#include "cachestore/rocksdb/database.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/coding.h"
#include "engine/base/log.h"
#include "rocksdb/cache.h"
#include "rocksdb/listener.h"
#include "rocksdb/statistics.h"

namespace xcache {

absl::Status FromRocksDb(const rocksdb::Status& status, std::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message =
      absl::StrCat(absl::string_view(what.data(), what.size()), ": ",
                   absl::StrReplaceAll(status.ToString(), {{"\n", " "}}));
  if (status.IsNotFound()) return absl::NotFoundError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNoSpace() ||
      status.subcode() == rocksdb::Status::SubCode::kSpaceLimit) {
    return absl::ResourceExhaustedError(message);
  }
  return absl::UnavailableError(message);
}

// Called on RocksDB's threads: only notes what happened.
class StoreDb::Listener : public rocksdb::EventListener {
 public:
  explicit Listener(StoreDb* store) : store_(store) {}

  void OnBackgroundError(rocksdb::BackgroundErrorReason,
                         rocksdb::Status* error) override {
    {
      MutexLock lock(store_->mu_);
      ++store_->background_errors_;
    }
    // A flush or a compaction that meets damage stops for good.
    store_->Degrade(error->IsCorruption()
                        ? absl::StrCat(error->ToString(),
                                       "; stop, and start once with "
                                       "--repair")
                        : error->ToString());
  }

 private:
  StoreDb* const store_;
};

void StoreDb::AddListener() {
  options_.listeners.push_back(std::make_shared<Listener>(this));
}

StoreDb::~StoreDb() {
  if (db_ == nullptr) return;
  StopCompactions();
  if (ledger_ != nullptr && !degraded()) {
    const uint64_t last = db_->GetLatestSequenceNumber();
    if (db_->SyncWAL().ok()) ledger_->LogSynced(last);
  }
  for (rocksdb::ColumnFamilyHandle* family : handles_) {
    if (family != nullptr) db_->DestroyColumnFamilyHandle(family);
  }
  const rocksdb::Status closed = db_->Close();
  if (!closed.ok()) {
    XC_LOG_WARN("the store did not close cleanly", "dir={} detail={}",
                LogValue(dir_), LogValue(closed.ToString()));
  }
}

void StoreDb::Degrade(const std::string& reason) {
  MutexLock lock(mu_);
  if (!degraded_.empty()) return;
  degraded_ = absl::StrReplaceAll(reason, {{"\n", " "}});
  ++degraded_total_;
  XC_LOG_ERROR("the store has stopped writing; serving goes on",
               "dir={} reason={}", LogValue(dir_), LogValue(degraded_));
}

bool StoreDb::degraded() const {
  MutexLock lock(mu_);
  return !degraded_.empty();
}

absl::Status StoreDb::Get(Family family, std::string_view key,
                          std::string* value) {
  rocksdb::ReadOptions options;
  // A page's value has a CRC-32C of its own, over key and value, that whoever
  // reads it checks (store_records.h). RocksDB's would be a second one, and two
  // thirds of the time of a read in Debian's build, which has no instruction
  // for it. Blocks of page tables are checked by ours when they are read
  // (table_check.h).
  options.verify_checksums = family != Family::kPages;
  // Pages are kept by our own pool: RocksDB's cache is for its indexes.
  options.fill_cache = family != Family::kPages;
  const rocksdb::Status status = db_->Get(
      options, handle(family), rocksdb::Slice(key.data(), key.size()), value);
  if (status.ok() || status.IsNotFound()) {
    return FromRocksDb(status, FamilyName(family));
  }
  // A file that is gone, cut short or unreadable: whatever the reason, what was
  // stored is not to be had.
  return absl::DataLossError(FromRocksDb(status, FamilyName(family)).message());
}

absl::Status StoreDb::Write(rocksdb::WriteBatch& batch, bool sync, Room room) {
  {
    MutexLock lock(mu_);
    if (!degraded_.empty()) {
      return absl::UnavailableError(
          absl::StrCat("the store has stopped writing: ", degraded_));
    }
  }
  if (room != Room::kFrees) {
    const auto kind =
        room == Room::kPage ? DiskSpace::Kind::kPage : DiskSpace::Kind::kRecord;
    const absl::Status admitted =
        space_->Admit(static_cast<int64_t>(batch.GetDataSize()), kind);
    if (!admitted.ok()) return admitted;
  }
  rocksdb::WriteOptions options;
  options.sync = sync;
  const rocksdb::Status status = db_->Write(options, &batch);
  if (status.ok()) {
    if (sync && ledger_ != nullptr) {
      // All that is in the log before this batch, and the batch, is on disk. A
      // batch begins with the number of its first record, which RocksDB has
      // filled in.
      const uint64_t first = FieldReader(batch.Data()).Int<uint64_t>();
      ledger_->LogSynced(first + static_cast<uint64_t>(batch.Count()) - 1);
    }
    return absl::OkStatus();
  }
  Degrade(status.ToString());
  return FromRocksDb(status, "write");
}

std::unique_ptr<rocksdb::Iterator> StoreDb::NewIterator(Family family) {
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.fill_cache = false;
  return std::unique_ptr<rocksdb::Iterator>(
      db_->NewIterator(options, handle(family)));
}

absl::Status StoreDb::CollectGarbage() {
  if (stop_compactions_) return absl::CancelledError("the store is closing");
  ++num_compactions_;
  rocksdb::Status status = db_->Flush({}, handle(Family::kPages));
  if (status.ok()) {
    rocksdb::CompactRangeOptions options;
    options.bottommost_level_compaction =
        rocksdb::BottommostLevelCompaction::kForce;
    options.blob_garbage_collection_policy =
        rocksdb::BlobGarbageCollectionPolicy::kForce;
    options.blob_garbage_collection_age_cutoff = space_->plan().gc_cutoff;
    options.canceled = &stop_compactions_;
    status =
        db_->CompactRange(options, handle(Family::kPages), nullptr, nullptr);
  }
  space_->Scan();
  return FromRocksDb(status, "garbage collection");
}

void StoreDb::Housekeep() {
  space_->Scan();
  if (!degraded() || !space_->HasFreeSpace()) return;
  const rocksdb::Status resumed = db_->Resume();
  MutexLock lock(mu_);
  if (!resumed.ok()) {
    XC_LOG_DEBUG("the store cannot write yet", "dir={} detail={}",
                 LogValue(dir_), LogValue(resumed.ToString()));
    return;
  }
  degraded_.clear();
  XC_LOG_INFO("the store writes again", "dir={}", LogValue(dir_));
}

int64_t StoreDb::Property(Family family, const std::string& name) const {
  uint64_t value = 0;
  db_->GetIntProperty(handle(family), name, &value);
  return static_cast<int64_t>(value);
}

int64_t StoreDb::PropertyOfAll(const std::string& name) const {
  uint64_t value = 0;
  db_->GetAggregatedIntProperty(name, &value);
  return static_cast<int64_t>(value);
}

int64_t StoreDb::BlobBytes() const {
  return Property(Family::kPages, rocksdb::DB::Properties::kTotalBlobFileSize);
}

DiskStats StoreDb::stats() const {
  using Properties = rocksdb::DB::Properties;
  DiskStats s;
  s.present = true;
  s.cap_bytes = space_->plan().cap;
  s.used_bytes = space_->used_bytes();
  s.free_bytes = space_->free_bytes();
  s.sst_bytes = PropertyOfAll(Properties::kTotalSstFilesSize);
  s.blob_bytes = BlobBytes();
  s.blob_garbage_bytes =
      Property(Family::kPages, Properties::kLiveBlobFileGarbageSize);
  rocksdb::VectorLogPtr logs;
  if (db_->GetSortedWalFiles(logs).ok()) {
    for (const auto& log : logs) {
      s.wal_bytes += static_cast<int64_t>(log->SizeFileBytes());
    }
  }
  s.torn_logs = has_torn_log_ ? 1 : 0;
  s.compactions = num_compactions_;
  s.block_cache_bytes = static_cast<int64_t>(cache_->GetUsage());
  s.memtable_bytes = PropertyOfAll(Properties::kSizeAllMemTables);
  s.table_reader_bytes = PropertyOfAll(Properties::kEstimateTableReadersMem);
  const rocksdb::Statistics& statistics = *options_.statistics;
  const auto ticker = [&](rocksdb::Tickers which) {
    return static_cast<int64_t>(statistics.getTickerCount(which));
  };
  s.wal_syncs = ticker(rocksdb::WAL_FILE_SYNCED);
  s.stall_us = ticker(rocksdb::STALL_MICROS);
  for (const auto& [which, name] : rocksdb::TickersNameMap) {
    const int64_t count = ticker(static_cast<rocksdb::Tickers>(which));
    if (count != 0) s.tickers.emplace_back(name, count);
  }
  MutexLock lock(mu_);
  s.degraded = !degraded_.empty() || !space_->HasFreeSpace();
  s.degraded_reason = degraded_;
  if (s.degraded && degraded_.empty()) {
    s.degraded_reason =
        absl::StrCat("the file system has ", s.free_bytes, " bytes left");
  }
  s.degraded_total = degraded_total_;
  s.background_errors = background_errors_;
  return s;
}

}  // namespace xcache
