#include "cachestore/rocksdb/disk_space.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache {

absl::Status FileStatus(const std::error_code& error, const std::string& what) {
  return error ? absl::ErrnoToStatus(error.value(), what) : absl::OkStatus();
}

int64_t FolderBytes(const std::string& dir) {
  namespace fs = std::filesystem;
  int64_t total = 0;
  std::error_code error;
  auto it = fs::recursive_directory_iterator(
      dir, fs::directory_options::skip_permission_denied, error);
  // Files come and go meanwhile; one that is gone takes no room.
  for (; !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    struct stat st;
    if (::lstat(it->path().c_str(), &st) != 0) continue;
    // A file may take more than its length (preallocated) and less (sparse).
    total += std::max<int64_t>(st.st_size, int64_t{st.st_blocks} * 512);
  }
  return total;
}

FileSystemBytes FileSystemOf(const std::string& dir) {
  struct statvfs vfs;
  if (::statvfs(dir.c_str(), &vfs) != 0) return {0, -1};
  const auto unit = static_cast<int64_t>(vfs.f_frsize);
  return {static_cast<int64_t>(vfs.f_blocks) * unit,
          static_cast<int64_t>(vfs.f_bavail) * unit};
}

absl::Status CheckRoomToOpen(const std::string& dir,
                             const std::string& db_path) {
  namespace fs = std::filesystem;
  int64_t needed = 1 << 20;
  std::error_code error;
  for (const auto& file : fs::directory_iterator(db_path, error)) {
    if (file.path().extension() != ".log") continue;
    needed += static_cast<int64_t>(file.file_size(error));
  }
  const int64_t free = FileSystemOf(db_path).free;
  if (free < 0 || free >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("no space to open store ", dir, ": its file system has ",
                   free, " bytes left, wanted ", needed));
}

DiskPlan PlanDisk(int64_t cap_bytes, int64_t rocksdb_memory_bytes) {
  DiskPlan plan{};
  plan.cap = std::max(cap_bytes, kMinDiskBytes);
  // Two memtables (one being filled, one being flushed) fit in half of
  // RocksDB's memory, and in a sixteenth of the disk.
  plan.write_buffer = std::clamp<int64_t>(
      std::min(rocksdb_memory_bytes / 4, plan.cap / 32), 512 << 10, 64 << 20);
  plan.max_wal = 2 * plan.write_buffer;
  plan.session_write_buffer =
      std::clamp<int64_t>(plan.write_buffer / 4, 256 << 10, 8 << 20);
  plan.gc_cutoff = 0.125;
  const auto copied =
      static_cast<int64_t>(plan.gc_cutoff * static_cast<double>(plan.cap));
  plan.records_limit =
      plan.cap - copied - plan.write_buffer - plan.session_write_buffer;
  // Records keep a WAL's worth to themselves, so that a turn can be durable
  // where pages are refused.
  plan.pages_limit = plan.records_limit - plan.max_wal;
  plan.high_water = plan.pages_limit / 10 * 9;
  plan.live_target = plan.pages_limit / 10 * 7;
  return plan;
}

DiskSpace::DiskSpace(std::string dir, const DiskPlan& plan,
                     int64_t min_free_bytes)
    : dir_(std::move(dir)), plan_(plan), min_free_option_(min_free_bytes) {
  Scan();
}

void DiskSpace::Scan() {
  MutexLock lock(mu_);
  ScanLocked();
}

void DiskSpace::ScanLocked() {
  scanned_bytes_ = FolderBytes(dir_);
  written_since_ = 0;
  const FileSystemBytes fs = FileSystemOf(dir_);
  free_bytes_ = fs.free;
  min_free_bytes_ = std::min(min_free_option_, fs.total / 20);
  if (HasFreeSpaceLocked()) refused_bytes_ = 0;
}

absl::Status DiskSpace::Admit(int64_t bytes, Room room) {
  if (room == Room::kFrees) return absl::OkStatus();
  const int64_t limit =
      room == Room::kPage ? plan_.pages_limit : plan_.records_limit;
  MutexLock lock(mu_);
  const auto over_cap = [&]() XC_REQUIRES(mu_) {
    return scanned_bytes_ + written_since_ + bytes > limit;
  };
  const auto over_disk = [&]() XC_REQUIRES(mu_) {
    // Once to the WAL and once from the memtable.
    return free_bytes_ >= 0 &&
           free_bytes_ - 2 * (written_since_ + bytes) < min_free_bytes_;
  };
  // A guess refuses nothing: look first. And look again before the guess is
  // far off.
  if (over_cap() || over_disk() || written_since_ > plan_.write_buffer) {
    ScanLocked();
  }
  if (over_cap()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        dir_, " is full: ", scanned_bytes_, " bytes of ", plan_.cap,
        " are in use (limit for this kind: ", limit, "), wanted ", bytes));
  }
  if (over_disk()) {
    refused_bytes_ = std::max(refused_bytes_, bytes);
    return absl::ResourceExhaustedError(
        absl::StrCat("the file system of ", dir_, " has ", free_bytes_,
                     " bytes left, wanted ", 2 * bytes, " and ",
                     min_free_bytes_, " to spare"));
  }
  written_since_ += bytes;
  return absl::OkStatus();
}

int64_t DiskSpace::used_bytes() const {
  MutexLock lock(mu_);
  return scanned_bytes_ + written_since_;
}

int64_t DiskSpace::free_bytes() const {
  MutexLock lock(mu_);
  return free_bytes_;
}

bool DiskSpace::HasFreeSpace() const {
  MutexLock lock(mu_);
  return HasFreeSpaceLocked();
}

bool DiskSpace::HasFreeSpaceLocked() const {
  return free_bytes_ < 0 || free_bytes_ - 2 * refused_bytes_ >= min_free_bytes_;
}

}  // namespace xcache
