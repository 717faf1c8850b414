// How much of the disk the store takes and may take. The cap is hard and counts
// everything in the folder, and what is about to be in it (rule R5).
#ifndef XCACHE_CACHESTORE_ROCKSDB_DISK_SPACE_H_
#define XCACHE_CACHESTORE_ROCKSDB_DISK_SPACE_H_

#include <cstdint>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "engine/base/mutex.h"

namespace xcache {

// OK where `error`, of the system, is none; else "what: reason".
absl::Status FileStatus(const std::error_code& error, const std::string& what);

// The bytes that a folder's files take on disk, subfolders included.
int64_t FolderBytes(const std::string& dir);
struct FileSystemBytes {
  int64_t total = 0;
  int64_t free = 0;  // for us; -1: it does not say
};
FileSystemBytes FileSystemOf(const std::string& dir);

// RESOURCE_EXHAUSTED: there is no room to open the database in `db_path` of the
// store `dir`, or to repair it: a new MANIFEST and the small files, and what
// the log holds once more. (Debian's RocksDB has assertions on, and one of them
// fails where an opening runs out of disk.)
absl::Status CheckRoomToOpen(const std::string& dir,
                             const std::string& db_path);

// How a cap is divided. All in bytes.
//
// A page is written three times: to the WAL, from the memtable to a blob file
// (only then does its part of the WAL go), and again if a garbage collection
// moves it. So the cap holds back one WAL, one memtable, and what one
// collection may copy before it deletes what it copied from; and for sessions a
// memtable of theirs.
struct DiskPlan {
  int64_t cap;
  int64_t write_buffer;          // a memtable; also a blob file's size
  int64_t max_wal;               // all WAL files
  int64_t session_write_buffer;  // the same of sessions
  double gc_cutoff;              // share of the oldest blob files moved at once
  int64_t pages_limit;           // a page that would pass it is refused
  int64_t records_limit;         // a manifest that would pass it is refused
  int64_t high_water;            // above it the housekeeping collects garbage
  int64_t live_target;           // above it the housekeeping evicts pages
};
inline constexpr int64_t kMinDiskBytes = int64_t{16} << 20;
DiskPlan PlanDisk(int64_t cap_bytes, int64_t rocksdb_memory_bytes);

// Follows the folder's size: a scan now and then, what is written in between
// added on top. Thread-safe.
class DiskSpace {
 public:
  // On a small file system no more than a twentieth of it is kept free.
  DiskSpace(std::string dir, const DiskPlan& plan, int64_t min_free_bytes);

  const DiskPlan& plan() const { return plan_; }

  enum class Room {
    kPage,    // refused first
    kRecord,  // may use what pages may not
    kFrees,   // makes room: always admitted
  };
  // OK: `bytes` may be written now, and count as written. RESOURCE_EXHAUSTED
  // says which limit it would pass.
  absl::Status Admit(int64_t bytes, Room room);

  // Looks at the folder and the file system.
  void Scan();

  int64_t used_bytes() const;
  int64_t free_bytes() const;
  // Whether the file system has room (min_free_bytes), and for what was refused
  // too, as of the last scan.
  bool HasFreeSpace() const;

 private:
  void ScanLocked() XC_REQUIRES(mu_);
  bool HasFreeSpaceLocked() const XC_REQUIRES(mu_);

  const std::string dir_;
  const DiskPlan plan_;
  const int64_t min_free_option_;
  mutable Mutex mu_;
  int64_t scanned_bytes_ XC_GUARDED_BY(mu_) = 0;
  int64_t written_since_ XC_GUARDED_BY(mu_) = 0;
  int64_t free_bytes_ XC_GUARDED_BY(mu_) = 0;
  int64_t min_free_bytes_ XC_GUARDED_BY(mu_) = 0;
  int64_t refused_bytes_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_DISK_SPACE_H_
