#include "cachestore/rocksdb/file_system.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/table_sums.h"
#include "rocksdb/file_system.h"

namespace xcache {
namespace {

using rocksdb::FileOptions;
using rocksdb::FSRandomAccessFile;
using rocksdb::FSSequentialFile;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

IOStatus DamagedTable(const std::string& path, const std::string& what) {
  return IOStatus::Corruption(absl::StrCat("table file ", path, " is damaged"),
                              what);
}

std::optional<uint64_t> ManifestNumber(std::string_view path) {
  return ParseManifestName(path.substr(path.rfind('/') + 1));
}

// A MANIFEST that is being written.
class WatchedManifest : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  WatchedManifest(std::unique_ptr<FSWritableFile> file, uint64_t number,
                  std::string db_path, SyncLedger& ledger)
      : FSWritableFileOwnerWrapper(std::move(file)),
        number_(number),
        db_path_(std::move(db_path)),
        ledger_(ledger) {}

  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    return Synced(FSWritableFileOwnerWrapper::Sync(options, dbg));
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    return Synced(FSWritableFileOwnerWrapper::Fsync(options, dbg));
  }

 private:
  IOStatus Synced(IOStatus status) {
    if (status.ok()) {
      ledger_.ManifestSynced(MarkManifest(db_path_, number_),
                             ReadCurrent(db_path_).value_or(0));
    }
    return status;
  }

  const uint64_t number_;
  const std::string db_path_;
  SyncLedger& ledger_;
};

// A table that is being written: its checksums follow it. RocksDB syncs it
// once, when it is whole.
class WatchedTable : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  using Base = rocksdb::FSWritableFileOwnerWrapper;
  using Base::Base;

  IOStatus Append(const Slice& data, const IOOptions& options,
                  IODebugContext* dbg) override {
    sums_.Append({data.data(), data.size()});
    return Base::Append(data, options, dbg);
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info,
                  IODebugContext* dbg) override {
    sums_.Append({data.data(), data.size()});
    return Base::Append(data, options, info, dbg);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    IOStatus status = Finish(options, dbg);
    return status.ok() ? Base::Sync(options, dbg) : status;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    IOStatus status = Finish(options, dbg);
    return status.ok() ? Base::Fsync(options, dbg) : status;
  }

 private:
  IOStatus Finish(const IOOptions& options, IODebugContext* dbg) {
    if (std::exchange(is_finished_, true)) return IOStatus::OK();
    return Base::Append(sums_.Trailer(), options, dbg);
  }

  TableSums sums_;
  bool is_finished_ = false;
};

// A table whose every read is checked.
class CheckedTable : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  CheckedTable(std::unique_ptr<FSRandomAccessFile> file, std::string path,
               TableSums sums)
      : FSRandomAccessFileOwnerWrapper(std::move(file)),
        path_(std::move(path)),
        sums_(std::move(sums)) {}

  IOStatus Read(uint64_t offset, size_t num_bytes, const IOOptions& options,
                Slice* result, char* scratch,
                IODebugContext* dbg) const override {
    constexpr uint64_t kChunk = TableSums::kChunkBytes;
    const uint64_t table_bytes = sums_.table_bytes();
    offset = std::min(offset, table_bytes);
    num_bytes = static_cast<size_t>(
        std::min<uint64_t>(num_bytes, table_bytes - offset));
    // The chunks that it lies in.
    const uint64_t from = offset / kChunk * kChunk;
    const uint64_t to = std::min(
        (offset + num_bytes + kChunk - 1) / kChunk * kChunk, table_bytes);
    std::string chunks(static_cast<size_t>(to - from), '\0');
    Slice got;
    IOStatus status = FSRandomAccessFileOwnerWrapper::Read(
        from, chunks.size(), options, &got, chunks.data(), dbg);
    if (!status.ok()) return status;
    if (got.size() != chunks.size() ||
        !sums_.Check(from, {got.data(), got.size()})) {
      return DamagedTable(path_, absl::StrCat(num_bytes, " bytes at ", offset));
    }
    std::memcpy(scratch, got.data() + (offset - from), num_bytes);
    *result = Slice(scratch, num_bytes);
    return status;
  }
  // Through Read().
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t num_requests,
                     const IOOptions& options, IODebugContext* dbg) override {
    return FSRandomAccessFile::MultiRead(requests, num_requests, options, dbg);
  }

 private:
  const std::string path_;
  const TableSums sums_;
};

// A log or a MANIFEST that is read. Neither of two things that damage makes of
// them reaches RocksDB. A record of a recycled log: we write none, and where
// damage is to be skipped the same one would be read for ever; it becomes one
// of no kind. A MANIFEST whose sequence numbers go back, as where a part of it
// stands twice: an assertion would end the process.
class CheckedLog : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  CheckedLog(std::unique_ptr<FSSequentialFile> file, std::string path)
      : FSSequentialFileOwnerWrapper(std::move(file)), path_(std::move(path)) {}

  // RocksDB reads a block at a time, and records end with their block.
  IOStatus Read(size_t num_bytes, const IOOptions& options, Slice* result,
                char* scratch, IODebugContext* dbg) override {
    IOStatus status = FSSequentialFileOwnerWrapper::Read(num_bytes, options,
                                                         result, scratch, dbg);
    if (!status.ok()) return status;
    const size_t size = result->size();
    std::memmove(scratch, result->data(), size);
    *result = Slice(scratch, size);
    // A record: CRC (4), length (2), type, and so many bytes.
    constexpr size_t kHeader = 7, kLengthAt = 4, kTypeAt = 6;
    constexpr char kFull = 1, kFirst = 2, kRecycled = 5, kLastRecycled = 8;
    constexpr char kNone = 127;
    for (size_t at = 0; at + kHeader <= size;) {
      char& type = scratch[at + kTypeAt];
      if (type >= kRecycled && type <= kLastRecycled) type = kNone;
      const size_t length =
          static_cast<uint8_t>(scratch[at + kLengthAt]) +
          256u * static_cast<uint8_t>(scratch[at + kLengthAt + 1]);
      at += kHeader;
      if (is_manifest_ && (type == kFull || type == kFirst) &&
          at + length <= size) {
        const uint64_t sequence = LastSequence({scratch + at, length});
        if (sequence < last_sequence_) {
          return IOStatus::Corruption(path_, "sequence numbers go back");
        }
        last_sequence_ = sequence;
      }
      at += length;
    }
    return status;
  }

 private:
  // Of a version edit (db/version_edit.cc in RocksDB), or of the part of it
  // that its first block has: a tag, and a number or a string; the last
  // sequence stands before anything else. What was last, where there is none,
  // or not all of it.
  uint64_t LastSequence(std::string_view edit) const {
    const auto varint = [&edit]() -> std::optional<uint64_t> {
      uint64_t value = 0;
      for (int shift = 0; !edit.empty() && shift < 64; shift += 7) {
        const auto byte = static_cast<uint8_t>(edit.front());
        edit.remove_prefix(1);
        value |= uint64_t{byte & 127u} << shift;
        if (byte < 128) return value;
      }
      return std::nullopt;
    };
    while (const auto tag = varint()) {
      const auto value = varint();
      if (!value) break;
      switch (*tag) {
        case 1:     // comparator
        case 8193:  // the database's id
          edit.remove_prefix(std::min<uint64_t>(*value, edit.size()));
          break;
        case 2:    // log
        case 3:    // next file
        case 9:    // previous log
        case 10:   // least log
        case 203:  // column families
          break;
        case 4:
          return *value;
        default:
          return last_sequence_;
      }
    }
    return last_sequence_;
  }

  const std::string path_;
  const bool is_manifest_ = ManifestNumber(path_).has_value();
  uint64_t last_sequence_ = 0;
};

class StoreFileSystem : public rocksdb::FileSystemWrapper {
 public:
  StoreFileSystem(const std::shared_ptr<rocksdb::FileSystem>& base,
                  SyncLedger* ledger, bool tables_have_sums)
      : FileSystemWrapper(base),
        ledger_(ledger),
        tables_have_sums_(tables_have_sums) {}
  const char* Name() const override { return "XCacheStoreFileSystem"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* file,
                           IODebugContext* dbg) override {
    IOStatus status =
        FileSystemWrapper::NewWritableFile(path, options, file, dbg);
    if (!status.ok()) return status;
    if (HasSums(path)) *file = std::make_unique<WatchedTable>(std::move(*file));
    if (ledger_ == nullptr) return status;
    if (const auto number = ManifestNumber(path)) {
      *file = std::make_unique<WatchedManifest>(
          std::move(*file), *number, path.substr(0, path.rfind('/')), *ledger_);
    }
    return status;
  }

  IOStatus NewSequentialFile(const std::string& path,
                             const FileOptions& options,
                             std::unique_ptr<FSSequentialFile>* file,
                             IODebugContext* dbg) override {
    IOStatus status =
        FileSystemWrapper::NewSequentialFile(path, options, file, dbg);
    if (status.ok() && (absl::EndsWith(path, ".log") || ManifestNumber(path))) {
      *file = std::make_unique<CheckedLog>(std::move(*file), path);
    }
    return status;
  }

  IOStatus NewRandomAccessFile(const std::string& path,
                               const FileOptions& options,
                               std::unique_ptr<FSRandomAccessFile>* file,
                               IODebugContext* dbg) override {
    IOStatus status =
        FileSystemWrapper::NewRandomAccessFile(path, options, file, dbg);
    if (!status.ok() || !HasSums(path)) return status;
    uint64_t file_bytes = 0;
    status =
        FileSystemWrapper::GetFileSize(path, IOOptions(), &file_bytes, dbg);
    if (!status.ok()) return status;
    const uint64_t table_bytes = TableSums::TableBytes(file_bytes);
    std::string trailer(static_cast<size_t>(file_bytes - table_bytes), '\0');
    Slice got;
    status = (*file)->Read(table_bytes, trailer.size(), IOOptions(), &got,
                           trailer.data(), dbg);
    if (!status.ok()) return status;
    auto sums = TableSums::Parse(table_bytes, {got.data(), got.size()});
    if (!sums) return DamagedTable(path, "its checksums");
    *file = std::make_unique<CheckedTable>(std::move(*file), path,
                                           *std::move(sums));
    return status;
  }

  IOStatus GetFileSize(const std::string& path, const IOOptions& options,
                       uint64_t* num_bytes, IODebugContext* dbg) override {
    IOStatus status =
        FileSystemWrapper::GetFileSize(path, options, num_bytes, dbg);
    if (status.ok() && HasSums(path)) {
      *num_bytes = TableSums::TableBytes(*num_bytes);
    }
    return status;
  }

 private:
  bool HasSums(const std::string& path) const {
    return tables_have_sums_ && absl::EndsWith(path, ".sst");
  }

  SyncLedger* const ledger_;
  const bool tables_have_sums_;
};

}  // namespace

std::unique_ptr<rocksdb::Env> MakeStoreEnv(rocksdb::Env* base,
                                           SyncLedger* ledger,
                                           bool tables_have_sums) {
  if (base == nullptr) base = rocksdb::Env::Default();
  return rocksdb::NewCompositeEnv(std::make_shared<StoreFileSystem>(
      base->GetFileSystem(), ledger, tables_have_sums));
}

}  // namespace xcache
