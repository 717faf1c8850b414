// What an operator does with a store while it serves: have its files copied,
// have every record checked. The words of CacheStore::Backup and Verify.
#ifndef XCACHE_CACHESTORE_UPKEEP_H_
#define XCACHE_CACHESTORE_UPKEEP_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace xcache {

struct BackupOptions {
  bool sessions_only = false;
  int64_t bytes_per_s = 0;  // 0: not limited
};

struct BackupReport {
  int64_t sessions = 0;
  int64_t pages = 0;
  int64_t missing_sessions = 0;  // in memory only: not in the backup
  int64_t as_of_ms = 0;          // Unix time: turns committed by then are in it
  uint32_t store_format = 0;
};

// Takes the files of a backup, one after another. An error ends the backup.
class BackupSink {
 public:
  virtual ~BackupSink() = default;
  // A file begins: its path in the store's folder, "sessions/CURRENT", and how
  // many bytes will come.
  virtual absl::Status Begin(std::string_view path, uint64_t num_bytes) = 0;
  virtual absl::Status Append(std::string_view bytes) = 0;
  // Asked now and then while no bytes are due.
  virtual absl::Status GoOn() { return absl::OkStatus(); }
};

struct VerifyReport {
  int64_t sessions = 0;  // checked
  int64_t pages = 0;
  int64_t bytes = 0;
  int64_t damaged_sessions = 0;
  int64_t damaged_pages = 0;
  int64_t damaged_files = 0;
  int64_t unreadable = 0;  // records that could not be had now
};

struct VerifyOptions {
  int64_t bytes_per_s = 0;  // 0: not limited
  // Told of each damaged session, and of each damaged table file (its path in
  // the store's folder).
  std::function<void(std::string_view tenant, std::string_view id,
                     const absl::Status& why)>
      on_damaged_session;
  std::function<void(std::string_view path)> on_damaged_file;
  // Called after every few records; an error ends the look.
  std::function<absl::Status(const VerifyReport& so_far)> progress;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_UPKEEP_H_
