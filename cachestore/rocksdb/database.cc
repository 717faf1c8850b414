#include "cachestore/rocksdb/database.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/coding.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "rocksdb/cache.h"
#include "rocksdb/write_batch.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// How long a database that is to be opened again waits for those who use it.
constexpr auto kReopenPatience = std::chrono::seconds(2);
// Between two tries to open it.
constexpr auto kReopenInterval = std::chrono::milliseconds(500);

rocksdb::Slice AsSlice(std::string_view bytes) {
  return {bytes.data(), bytes.size()};
}

std::string DiskKey(Family family, std::string_view key) {
  std::string out(1, static_cast<char>(family));
  out.append(key);
  return out;
}

}  // namespace

// RocksDB keeps no error number, only its text.
bool IsTransient(const rocksdb::Status& status) {
  if (!status.IsIOError()) return status.IsMemoryLimit() || status.IsBusy();
  const std::string text = status.ToString();
  for (const int error : {EMFILE, ENFILE, ENOMEM, EAGAIN, EINTR}) {
    if (absl::StrContains(text, std::strerror(error))) return true;
  }
  return false;
}

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

void Database::OnBackgroundError(rocksdb::BackgroundErrorReason,
                                 rocksdb::Status* error) {
  {
    MutexLock lock(mu_);
    ++background_errors_;
  }
  Degrade(*error);
}

Database::Database(const DatabaseOptions& options,
                   const DatabaseResources& resources, DiskSpace& space)
    : options_(options),
      path_(absl::StrCat(options.dir, "/",
                         options.subfolder.empty()
                             ? std::string(DatabaseName(options.kind))
                             : options.subfolder)),
      space_(space),
      resources_(resources) {}

Database::~Database() {
  StopCompactions();
  if (!degraded() && Acquire().ok()) {
    if (absl::Status synced = Sync(); !synced.ok()) {
      XC_LOG_WARN("a database was not synced at its end", "path={} detail={}",
                  LogValue(path_), LogValue(std::string(synced.message())));
    }
  }
  Publish(nullptr);
}

void Database::Publish(Live live) {
  Live old;
  MutexLock lock(mu_);
  old = std::exchange(live_, std::move(live));
}

absl::StatusOr<Database::Live> Database::Acquire() const {
  MutexLock lock(mu_);
  if (live_ != nullptr) return live_;
  return absl::UnavailableError("the database is being opened again");
}

void Database::Degrade(const rocksdb::Status& error) {
  if (!error.IsCorruption()) return Degrade(error.ToString(), Cure::kReopen);
  // A flush or a compaction that meets damage stops for good.
  if (options_.kind == DatabaseKind::kPages) {
    Degrade(error.ToString(), Cure::kStartAnew);
  } else {
    Degrade(error.ToString() + "; stop, and start once with --repair",
            Cure::kRepair);
  }
}

void Database::Degrade(const std::string& reason, Cure cure) {
  MutexLock lock(mu_);
  if (!degraded_.empty()) {
    // What cannot be cured by waiting outlasts what can.
    cure_ = std::max(cure_, cure);
    return;
  }
  degraded_ = absl::StrReplaceAll(reason, {{"\n", " "}});
  cure_ = cure;
  ++degraded_total_;
  XC_LOG_ERROR("a database has stopped writing; serving goes on",
               "path={} reason={}", LogValue(path_), LogValue(degraded_));
}

bool Database::degraded() const {
  MutexLock lock(mu_);
  return !degraded_.empty();
}

absl::Status Database::Get(Family family, std::string_view key,
                           std::string* value) {
  XC_ASSIGN_OR_RETURN(const Live live, Acquire());
  rocksdb::ReadOptions options;
  // Tables are checked beneath RocksDB (table_sums.h), and a page's value has a
  // CRC-32C of its own. RocksDB's would be a second one, and two thirds of the
  // time of a read in Debian's build, which has no instruction for it.
  options.verify_checksums = false;
  // Pages are kept by our own pool: RocksDB's cache is for its indexes.
  options.fill_cache = family != Family::kPages;
  const rocksdb::Status status =
      live->Get(options, DiskKey(family, key), value);
  const absl::Status mapped = FromRocksDb(status, "read");
  if (status.ok() || status.IsNotFound()) return mapped;
  if (IsTransient(status)) return absl::UnavailableError(mapped.message());
  // A file that is gone, cut short or unreadable: whatever the reason, what was
  // stored is not to be had.
  return absl::DataLossError(mapped.message());
}

absl::Status Database::Write(std::span<const WriteOp> ops, bool sync,
                             Room room) {
  {
    MutexLock lock(mu_);
    if (!degraded_.empty()) {
      return absl::UnavailableError(
          absl::StrCat("the database has stopped writing: ", degraded_));
    }
  }
  XC_ASSIGN_OR_RETURN(const Live live, Acquire());
  // A file without a name takes a sync all the same.
  if (sync && !CheckFolder()) {
    return absl::UnavailableError("the store's folder is gone");
  }
  size_t num_bytes = 64;
  for (const WriteOp& op : ops) {
    num_bytes += op.key.size() + 16;
    if (op.value) num_bytes += (*op.value)[0].size() + (*op.value)[1].size();
  }
  XC_RETURN_IF_ERROR(space_.Admit(static_cast<int64_t>(num_bytes), room));
  rocksdb::WriteBatch batch(num_bytes);
  for (const WriteOp& op : ops) {
    const std::string disk_key = DiskKey(op.family, op.key);
    const rocksdb::Slice key = disk_key;
    rocksdb::Status added;
    if (op.value) {
      const rocksdb::Slice parts[] = {AsSlice((*op.value)[0]),
                                      AsSlice((*op.value)[1])};
      added = batch.Put(rocksdb::SliceParts(&key, 1),
                        rocksdb::SliceParts(parts, 2));
    } else {
      added = batch.Delete(key);
    }
    if (!added.ok()) return FromRocksDb(added, "write");
  }
  rocksdb::WriteOptions options;
  options.sync = sync;
  const rocksdb::Status status = live->Write(options, &batch);
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
  Degrade(status);
  return FromRocksDb(status, "write");
}

rocksdb::Status ForEach(
    rocksdb::Iterator& it,
    const std::function<void(std::string_view, std::string_view)>& fn) {
  const auto take = [&] {
    fn({it.key().data(), it.key().size()},
       {it.value().data(), it.value().size()});
  };
  for (it.SeekToFirst(); it.Valid(); it.Next()) take();
  rocksdb::Status status = it.status();
  if (status.ok()) return status;
  // A damaged block ends the way; what is behind it is reached from the end.
  for (it.SeekToLast(); it.Valid(); it.Prev()) take();
  return status;
}

absl::Status Database::Scan(
    Family family,
    const std::function<void(std::string_view, std::string_view)>& fn) {
  XC_ASSIGN_OR_RETURN(const Live live, Acquire());
  const std::string first = DiskKey(family, "");
  const std::string end(1, static_cast<char>(first[0] + 1));
  const rocksdb::Slice lower = first;
  const rocksdb::Slice upper = end;
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // table_sums.h
  options.fill_cache = false;
  options.iterate_lower_bound = &lower;
  options.iterate_upper_bound = &upper;
  const std::unique_ptr<rocksdb::Iterator> it(live->NewIterator(options));
  const rocksdb::Status status =
      ForEach(*it, [&](std::string_view key, std::string_view value) {
        fn(key.substr(1), value);
      });
  const absl::Status mapped = FromRocksDb(status, "scan");
  if (status.ok() || IsTransient(status)) return mapped;
  return absl::DataLossError(mapped.message());
}

absl::StatusOr<int> Database::ScanSome(
    Family family, std::string_view after, int limit,
    const std::function<void(std::string_view, std::string_view)>& fn) {
  XC_ASSIGN_OR_RETURN(const Live live, Acquire());
  const std::string end(1, static_cast<char>(static_cast<char>(family) + 1));
  const rocksdb::Slice upper = end;
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // table_sums.h
  options.fill_cache = false;
  options.iterate_upper_bound = &upper;
  const std::unique_ptr<rocksdb::Iterator> it(live->NewIterator(options));
  const std::string first = DiskKey(family, after);
  it->Seek(first);
  if (!after.empty() && it->Valid() && it->key() == rocksdb::Slice(first)) {
    it->Next();
  }
  int count = 0;
  for (; count < limit && it->Valid(); it->Next(), ++count) {
    const rocksdb::Slice key = it->key(), value = it->value();
    fn({key.data() + 1, key.size() - 1}, {value.data(), value.size()});
  }
  const absl::Status mapped = FromRocksDb(it->status(), "scan");
  if (mapped.ok()) return count;
  if (IsTransient(it->status())) return mapped;
  return absl::DataLossError(mapped.message());
}

absl::StatusOr<std::unique_ptr<PinnedFiles>> Database::PinFiles() {
  if (degraded()) {
    return absl::UnavailableError("the database has stopped writing");
  }
  XC_ASSIGN_OR_RETURN(Live live, Acquire());
  std::shared_ptr<void> token;
  {
    MutexLock lock(mu_);
    token = pin_.lock();
    if (token == nullptr) token = std::make_shared<int>();
    pin_ = token;
  }
  return PinnedFiles::Of(std::move(live), std::move(token));
}

absl::Status Database::Sync() {
  XC_ASSIGN_OR_RETURN(const Live live, Acquire());
  const uint64_t last = live->GetLatestSequenceNumber();
  if (ledger_ != nullptr && ledger_->synced_sequence() == last) {
    return absl::OkStatus();  // nothing was written since
  }
  const rocksdb::Status synced = live->SyncWAL();
  if (synced.ok() && ledger_ != nullptr) ledger_->LogSynced(last);
  return FromRocksDb(synced, "sync");
}

absl::Status Database::Compact(double blob_cutoff) {
  XC_ASSIGN_OR_RETURN(const Live live, Acquire());
  if (stop_compactions_) return absl::CancelledError("the store is closing");
  {
    MutexLock lock(mu_);
    if (!pin_.expired()) {
      return absl::CancelledError("its files are being read as they are");
    }
  }
  ++num_compactions_;
  // First, or the log would still have what it had.
  rocksdb::Status status = live->Flush({});
  if (status.ok()) {
    rocksdb::CompactRangeOptions options;
    options.bottommost_level_compaction =
        rocksdb::BottommostLevelCompaction::kForce;
    options.blob_garbage_collection_policy =
        rocksdb::BlobGarbageCollectionPolicy::kForce;
    options.blob_garbage_collection_age_cutoff = blob_cutoff;
    options.canceled = &stop_compactions_;
    status = live->CompactRange(options, nullptr, nullptr);
  }
  space_.Scan();
  return FromRocksDb(status, "compaction");
}

absl::Status Database::Purge() { return Compact(/*blob_cutoff=*/1.0); }

absl::Status Database::CollectGarbage() {
  // A share of few files must come to one at least.
  return Compact(std::max(
      space_.plan().gc_cutoff,
      1.0 / static_cast<double>(std::max<int64_t>(
                1, Property(rocksdb::DB::Properties::kNumBlobFiles)))));
}

bool Database::CheckFolder() {
  struct stat st;
  if (::stat(path_.c_str(), &st) == 0 && st.st_ino == folder_inode_) {
    return true;
  }
  Degrade(absl::StrCat("the folder ", path_, " was removed or replaced"),
          Cure::kResume);
  return false;
}

void Database::Housekeep() {
  if (!CheckFolder()) return;
  Cure cure;
  Live live;
  {
    MutexLock lock(mu_);
    if (degraded_.empty()) return;
    cure = cure_;
    live = live_;
  }
  if (cure == Cure::kRepair || !space_.HasFreeSpace()) return;
  // What RocksDB does not recover from by itself (a log that failed to sync,
  // say) is over once it is opened again.
  const bool resumed =
      cure != Cure::kStartAnew && live != nullptr && live->Resume().ok();
  live = nullptr;
  if (!resumed && !Reopen(cure)) return;
  MutexLock lock(mu_);
  if (cure_ > cure) return;  // it has become worse meanwhile
  degraded_.clear();
  cure_ = Cure::kResume;
  XC_LOG_INFO("a database writes again", "path={}", LogValue(path_));
}

bool Database::Reopen(Cure cure) {
  const auto now = steady_clock::now();
  if (now < next_reopen_) return false;
  next_reopen_ = now + kReopenInterval;
  Live old;
  {
    MutexLock lock(mu_);
    old.swap(live_);
  }
  while (old != nullptr && old.use_count() > 1) {
    if (steady_clock::now() > now + kReopenPatience) {
      Publish(std::move(old));
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  old = nullptr;
  bool is_new = false;
  absl::Status opened = absl::OkStatus();
  if (cure == Cure::kStartAnew) {
    std::string why;
    {
      MutexLock lock(mu_);
      why = degraded_;
    }
    opened = SetAside(absl::DataLossError(why));
    is_new = true;
  }
  if (opened.ok()) opened = OpenKind(&is_new);
  if (!opened.ok()) {
    XC_LOG_DEBUG("a database does not open again yet", "path={} detail={}",
                 LogValue(path_), LogValue(std::string(opened.message())));
    return false;
  }
  if (is_new && options_.on_started_anew) options_.on_started_anew();
  return true;
}

int64_t Database::Property(const std::string& name) const {
  uint64_t value = 0;
  if (const auto live = Acquire(); live.ok()) {
    (*live)->GetIntProperty(name, &value);
  }
  return static_cast<int64_t>(value);
}

int64_t Database::BlobBytes() const {
  return Property(rocksdb::DB::Properties::kTotalBlobFileSize);
}

void Database::AddStats(DiskStats* stats) const {
  using Properties = rocksdb::DB::Properties;
  stats->sst_bytes += Property(Properties::kTotalSstFilesSize);
  stats->memtable_bytes += Property(Properties::kSizeAllMemTables);
  stats->table_reader_bytes += Property(Properties::kEstimateTableReadersMem);
  stats->blob_garbage_bytes += Property(Properties::kLiveBlobFileGarbageSize);
  stats->blob_bytes += BlobBytes();
  rocksdb::VectorLogPtr logs;
  if (const auto live = Acquire();
      live.ok() && (*live)->GetSortedWalFiles(logs).ok()) {
    for (const auto& log : logs) {
      stats->wal_bytes += static_cast<int64_t>(log->SizeFileBytes());
    }
  }
  stats->torn_logs += has_torn_log_ ? 1 : 0;
  stats->compactions += num_compactions_;
  MutexLock lock(mu_);
  stats->pages_set_aside += num_set_aside_;
  stats->degraded_total += degraded_total_;
  stats->background_errors += background_errors_;
  if (degraded_.empty()) return;
  stats->degraded = true;
  absl::StrAppend(&stats->degraded_reason,
                  stats->degraded_reason.empty() ? "" : "; ",
                  std::string(DatabaseName(options_.kind)), ": ", degraded_);
}

}  // namespace xcache
