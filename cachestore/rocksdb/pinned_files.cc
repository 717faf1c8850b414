#include "cachestore/rocksdb/pinned_files.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/table_sums.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// A whole number of the chunks that tables' checksums are of.
constexpr size_t kPieceBytes = 256 << 10;
static_assert(kPieceBytes % TableSums::kChunkBytes == 0);

}  // namespace

absl::StatusOr<std::unique_ptr<PinnedFiles>> PinnedFiles::Of(
    std::shared_ptr<rocksdb::DB> db, std::shared_ptr<void> token) {
  XC_RETURN_IF_ERROR(FromRocksDb(db->DisableFileDeletions(), "pin files"));
  std::unique_ptr<PinnedFiles> pinned(
      new PinnedFiles(std::move(db), std::move(token)));
  rocksdb::LiveFilesStorageInfoOptions options;
  // The log is copied: a flush would be work for nothing.
  options.wal_size_for_flush = std::numeric_limits<uint64_t>::max();
  std::vector<rocksdb::LiveFileStorageInfo> infos;
  XC_RETURN_IF_ERROR(FromRocksDb(
      pinned->db_->GetLiveFilesStorageInfo(options, &infos), "list files"));
  for (rocksdb::LiveFileStorageInfo& info : infos) {
    PinnedFile file;
    file.name = std::move(info.relative_filename);
    file.contents = std::move(info.replacement_contents);
    file.num_bytes = info.size;
    if (file.is_table()) {
      // RocksDB does not know of the checksums behind it.
      std::error_code error;
      file.num_bytes = std::filesystem::file_size(
          pinned->db_->GetName() + "/" + file.name, error);
      XC_RETURN_IF_ERROR(FileStatus(error, "cannot look at " + file.name));
    }
    pinned->files_.push_back(std::move(file));
  }
  return pinned;
}

PinnedFiles::~PinnedFiles() {
  db_->EnableFileDeletions(/*force=*/false).PermitUncheckedError();
}

absl::Status PinnedFiles::Read(const PinnedFile& file,
                               const TakeFn& take) const {
  if (!file.contents.empty()) return take(file.contents);
  std::ifstream in(db_->GetName() + "/" + file.name, std::ios::binary);
  std::string piece;
  for (uint64_t left = file.num_bytes; left > 0; left -= piece.size()) {
    piece.resize(static_cast<size_t>(std::min<uint64_t>(left, kPieceBytes)));
    if (!in.read(piece.data(), static_cast<std::streamsize>(piece.size()))) {
      return absl::DataLossError(absl::StrCat(
          "file ", file.name, ": expected ", file.num_bytes,
          " bytes, cannot read those from ", file.num_bytes - left, " on"));
    }
    XC_RETURN_IF_ERROR(take(piece));
  }
  return absl::OkStatus();
}

absl::Status PinnedFiles::CheckTable(const PinnedFile& file,
                                     const TakeFn& spend) const {
  const uint64_t table_bytes = TableSums::TableBytes(file.num_bytes);
  // The checksums stand behind what they are of.
  std::ifstream in(db_->GetName() + "/" + file.name, std::ios::binary);
  std::string trailer(static_cast<size_t>(file.num_bytes - table_bytes), '\0');
  in.seekg(static_cast<std::streamoff>(table_bytes));
  in.read(trailer.data(), static_cast<std::streamsize>(trailer.size()));
  const std::optional<TableSums> sums =
      in ? TableSums::Parse(table_bytes, trailer) : std::nullopt;
  if (!sums) {
    return absl::DataLossError(
        absl::StrCat("file ", file.name, ": its checksums are damaged"));
  }
  uint64_t at = 0;
  return Read(file, [&](std::string_view piece) -> absl::Status {
    XC_RETURN_IF_ERROR(spend(piece));
    if (at < table_bytes) {
      const std::string_view of_table =
          piece.substr(0, static_cast<size_t>(std::min<uint64_t>(
                              piece.size(), table_bytes - at)));
      if (!sums->Check(at, of_table)) {
        return absl::DataLossError(
            absl::StrCat("file ", file.name, " is damaged within ",
                         of_table.size(), " bytes at ", at));
      }
    }
    at += piece.size();
    return absl::OkStatus();
  });
}

}  // namespace xcache
