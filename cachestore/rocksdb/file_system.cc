#include "cachestore/rocksdb/file_system.h"

#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/table_check.h"
#include "engine/base/crc32c.h"
#include "rocksdb/file_system.h"

namespace xcache {
namespace {

using rocksdb::FileOptions;
using rocksdb::FSRandomAccessFile;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

// A MANIFEST that is being written.
class WatchedManifest : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  WatchedManifest(std::unique_ptr<FSWritableFile> file, uint64_t number,
                  std::string db_path, SyncLedger& ledger)
      : FSWritableFileOwnerWrapper(std::move(file)),
        db_path_(std::move(db_path)),
        ledger_(ledger) {
    mark_.number = number;
  }

  IOStatus Append(const Slice& data, const IOOptions& options,
                  IODebugContext* dbg) override {
    return Appended(data,
                    FSWritableFileOwnerWrapper::Append(data, options, dbg));
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info,
                  IODebugContext* dbg) override {
    return Appended(
        data, FSWritableFileOwnerWrapper::Append(data, options, info, dbg));
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    return Synced(FSWritableFileOwnerWrapper::Sync(options, dbg));
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    return Synced(FSWritableFileOwnerWrapper::Fsync(options, dbg));
  }

 private:
  IOStatus Appended(const Slice& data, IOStatus status) {
    if (status.ok()) {
      mark_.num_bytes += data.size();
      mark_.crc = Crc32c(data.data(), data.size(), mark_.crc);
    } else {
      is_known_ = false;  // it may have got any part of it
    }
    return status;
  }
  IOStatus Synced(IOStatus status) {
    if (status.ok() && is_known_) {
      ledger_.ManifestSynced(mark_, ReadCurrent(db_path_).value_or(0));
    }
    return status;
  }

  const std::string db_path_;
  SyncLedger& ledger_;
  ManifestMark mark_;
  bool is_known_ = true;
};

// A table: what is read of it is checked, where that is one of its blocks.
class CheckedTable : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  CheckedTable(std::unique_ptr<FSRandomAccessFile> file, std::string path,
               TableBlocks blocks)
      : FSRandomAccessFileOwnerWrapper(std::move(file)),
        path_(std::move(path)),
        blocks_(std::move(blocks)) {}

  IOStatus Read(uint64_t offset, size_t num_bytes, const IOOptions& options,
                Slice* result, char* scratch,
                IODebugContext* dbg) const override {
    IOStatus status = FSRandomAccessFileOwnerWrapper::Read(
        offset, num_bytes, options, result, scratch, dbg);
    if (!status.ok() ||
        CheckTableRead(blocks_, offset, {result->data(), result->size()})) {
      return status;
    }
    return IOStatus::Corruption(
        absl::StrCat("table file ", path_, " is damaged"),
        absl::StrCat("block at ", offset, ", ", num_bytes, " bytes"));
  }

 private:
  const std::string path_;
  const TableBlocks blocks_;
};

class StoreFileSystem : public rocksdb::FileSystemWrapper {
 public:
  StoreFileSystem(const std::shared_ptr<rocksdb::FileSystem>& base,
                  SyncLedger* ledger)
      : FileSystemWrapper(base), ledger_(ledger) {}
  const char* Name() const override { return "XCacheStoreFileSystem"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* file,
                           IODebugContext* dbg) override {
    IOStatus status =
        FileSystemWrapper::NewWritableFile(path, options, file, dbg);
    if (ledger_ == nullptr || !status.ok()) return status;
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return status;
    const auto number =
        ParseManifestName(std::string_view(path).substr(slash + 1));
    if (number) {
      *file = std::make_unique<WatchedManifest>(
          std::move(*file), *number, path.substr(0, slash), *ledger_);
    }
    return status;
  }

  IOStatus NewRandomAccessFile(const std::string& path,
                               const FileOptions& options,
                               std::unique_ptr<FSRandomAccessFile>* file,
                               IODebugContext* dbg) override {
    IOStatus status =
        FileSystemWrapper::NewRandomAccessFile(path, options, file, dbg);
    if (!status.ok() || !absl::EndsWith(path, ".sst")) return status;
    TableBlocks blocks;
    status = Check(path, **file, &blocks, dbg);
    if (status.ok()) {
      *file = std::make_unique<CheckedTable>(std::move(*file), path,
                                             std::move(blocks));
    } else {
      file->reset();
    }
    return status;
  }

 private:
  IOStatus Check(const std::string& path, FSRandomAccessFile& file,
                 TableBlocks* blocks, IODebugContext* dbg) {
    uint64_t size = 0;
    IOStatus failed = GetFileSize(path, IOOptions(), &size, dbg);
    if (!failed.ok()) return failed;
    absl::StatusOr<TableBlocks> checked =
        CheckTable(size, [&](uint64_t offset, size_t num_bytes, char* out) {
          Slice got;
          failed = file.Read(offset, num_bytes, IOOptions(), &got, out, dbg);
          if (!failed.ok()) return absl::UnavailableError("cannot be read");
          if (got.size() != num_bytes) {
            return absl::DataLossError(absl::StrCat("ends at ", offset));
          }
          if (got.data() != out) std::memcpy(out, got.data(), num_bytes);
          return absl::OkStatus();
        });
    if (checked.ok()) {
      *blocks = *std::move(checked);
      return IOStatus::OK();
    }
    if (!failed.ok()) return failed;
    return IOStatus::Corruption(
        absl::StrCat("table file ", path, " is damaged"),
        std::string(checked.status().message()));
  }

  SyncLedger* const ledger_;
};

}  // namespace

std::unique_ptr<rocksdb::Env> MakeStoreEnv(rocksdb::Env* base,
                                           SyncLedger* ledger) {
  if (base == nullptr) base = rocksdb::Env::Default();
  return rocksdb::NewCompositeEnv(
      std::make_shared<StoreFileSystem>(base->GetFileSystem(), ledger));
}

}  // namespace xcache
