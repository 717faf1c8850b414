// The files of a database at an instant, to be read while it goes on: a backup
// copies them, a check looks at their checksums. Until this goes RocksDB
// deletes none of its files, these or others.
#ifndef XCACHE_CACHESTORE_ROCKSDB_PINNED_FILES_H_
#define XCACHE_CACHESTORE_ROCKSDB_PINNED_FILES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rocksdb/db.h"

namespace xcache {

struct PinnedFile {
  std::string name;  // in the database's folder
  // What of it belongs to that instant: files that grow may be longer by now.
  uint64_t num_bytes = 0;
  // Instead of what is in the file, where it is not empty.
  std::string contents;

  bool is_table() const { return name.ends_with(".sst"); }
};

class PinnedFiles {
 public:
  // As UNAVAILABLE or DATA_LOSS: RocksDB's reason. `token` lives as long.
  static absl::StatusOr<std::unique_ptr<PinnedFiles>> Of(
      std::shared_ptr<rocksdb::DB> db, std::shared_ptr<void> token);
  ~PinnedFiles();
  PinnedFiles(const PinnedFiles&) = delete;
  PinnedFiles& operator=(const PinnedFiles&) = delete;

  const std::vector<PinnedFile>& files() const { return files_; }

  // Calls take(bytes) for one of the files, piece by piece, as it lies on disk:
  // a table with the checksums behind it. DATA_LOSS: it is shorter than it must
  // be, or cannot be read; else what `take` says.
  using TakeFn = std::function<absl::Status(std::string_view bytes)>;
  absl::Status Read(const PinnedFile& file, const TakeFn& take) const;

  // Whether a table agrees with its checksums (table_sums.h). `spend` is called
  // with how much was read. DATA_LOSS: it does not.
  absl::Status CheckTable(const PinnedFile& file, const TakeFn& spend) const;

 private:
  PinnedFiles(std::shared_ptr<rocksdb::DB> db, std::shared_ptr<void> token)
      : db_(std::move(db)), token_(std::move(token)) {}

  const std::shared_ptr<rocksdb::DB> db_;
  const std::shared_ptr<void> token_;
  std::vector<PinnedFile> files_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_PINNED_FILES_H_
