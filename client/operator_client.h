// Talks with a server's operator socket (proto/xcache/v1/operator.proto).
// Internal: the command `xcache store` is its user.
#ifndef XCACHE_CLIENT_OPERATOR_CLIENT_H_
#define XCACHE_CLIENT_OPERATOR_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace xcache::client {

struct StoreFigures {
  struct Tier {
    std::string name;
    int64_t pages = 0, bytes = 0, queued_pages = 0;
    int64_t hits = 0, misses = 0, puts = 0, evictions = 0, damaged = 0;
  };
  struct Disk {
    int64_t cap_bytes = 0, used_bytes = 0, free_bytes = 0;
    int64_t table_bytes = 0, log_bytes = 0, blob_bytes = 0;
    int64_t blob_garbage_bytes = 0, pages_set_aside = 0;
    std::string stopped_writing;
  };
  std::string store_dir;
  int64_t sessions = 0, sessions_in_memory_only = 0, damaged_sessions = 0;
  int64_t commits = 0, commit_failures = 0, expired = 0;
  std::optional<absl::Time> newest_update;
  std::vector<Tier> tiers;
  std::optional<Disk> disk;
};

struct DamagedSession {
  std::string tenant, id, detail;
};

struct VerifyResult {
  int64_t sessions = 0, pages = 0, bytes = 0, unreadable = 0;
  int64_t damaged_sessions = 0, damaged_pages = 0;
  std::vector<DamagedSession> damaged;
  std::vector<std::string> damaged_files;
};

struct BackupDone {
  uint64_t sessions = 0, pages = 0, missing_sessions = 0;
  absl::Time as_of;
  uint32_t store_format = 0;
  std::string server_version;
};

// Takes a backup's files. An error ends it.
class BackupTaker {
 public:
  virtual ~BackupTaker() = default;
  virtual absl::Status Begin(const std::string& path, uint64_t num_bytes) = 0;
  virtual absl::Status Append(std::string_view bytes) = 0;
};

// Not thread-safe.
class OperatorClient {
 public:
  // Does not look whether anybody is there. INVALID_ARGUMENT: a name that is
  // too long for a socket.
  static absl::StatusOr<std::unique_ptr<OperatorClient>> Connect(
      const std::string& socket);
  ~OperatorClient();

  // UNAVAILABLE: no server has the socket open; PERMISSION_DENIED: it is
  // another user's. Else as operator.proto says.
  absl::StatusOr<StoreFigures> GetStats();
  // `progress` is called about once a second; false ends it (CANCELLED).
  absl::StatusOr<VerifyResult> Verify(
      uint64_t bytes_per_second,
      const std::function<bool(const VerifyResult&)>& progress);
  // DATA_LOSS: it ended without the last word.
  absl::StatusOr<BackupDone> Backup(bool sessions_only,
                                    uint64_t bytes_per_second,
                                    BackupTaker& taker);

 private:
  struct Impl;
  explicit OperatorClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_OPERATOR_CLIENT_H_
