// A backup as a folder (cachestore/FORMAT.md): the files of a store,
// BACKUP.json that says what it is, and SHA256SUMS, which `sha256sum -c` reads,
// of them all. It gets its name once it is whole and on disk. No server is
// asked here.
#ifndef XCACHE_CLIENT_COMMAND_BACKUP_FOLDER_H_
#define XCACHE_CLIENT_COMMAND_BACKUP_FOLDER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/operator_client.h"
#include "engine/base/sha256.h"

namespace xcache::command {

inline constexpr char kBackupInfoName[] = "BACKUP.json";
inline constexpr char kBackupSumsName[] = "SHA256SUMS";

// What BACKUP.json says.
struct BackupInfo {
  uint64_t sessions = 0, pages = 0, missing_sessions = 0;
  uint64_t num_files = 0, num_bytes = 0;  // without it and SHA256SUMS
  uint32_t store_format = 0;
  std::string as_of, server_version;
};
std::string EncodeBackupInfo(const BackupInfo& info);
// INVALID_ARGUMENT: not such a document, or of a later version; says why.
absl::StatusOr<BackupInfo> ParseBackupInfo(std::string_view text);

// A line of SHA256SUMS.
struct SummedFile {
  std::string path;  // "BACKUP.json", or "<folder>/<name>"
  std::string hex;   // 64 lower-case hexadecimal digits
};
// Whether a file of a backup may be called so: in the folder "sessions" or
// "pages" itself, of [A-Za-z0-9._-], and not hidden. Nothing else is written to
// or read from.
bool IsBackupPath(std::string_view path);
// INVALID_ARGUMENT: a line that is none, a path that may not be, or twice.
absl::StatusOr<std::vector<SummedFile>> ParseSums(std::string_view text);

// Writes one.
class BackupWriter final : public client::BackupTaker {
 public:
  // `dir` becomes it. ALREADY_EXISTS: there is something of that name.
  static absl::StatusOr<std::unique_ptr<BackupWriter>> Create(
      const std::string& dir);
  // Deletes what was written where Finish() did not come to its end.
  ~BackupWriter() override;

  absl::Status Begin(const std::string& path, uint64_t num_bytes) override;
  absl::Status Append(std::string_view bytes) override;
  // Syncs all and gives the folder its name.
  absl::Status Finish(const client::BackupDone& done);

  uint64_t num_files() const { return sums_.size(); }
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  explicit BackupWriter(std::string dir);
  absl::Status End();
  absl::Status WriteWhole(const std::string& name, std::string_view text);

  const std::string dir_, partial_;
  bool is_made_ = false;
  int fd_ = -1;
  std::string path_;   // of the file that was begun
  uint64_t left_ = 0;  // of it
  std::unique_ptr<Sha256> sum_;
  std::vector<SummedFile> sums_;
  uint64_t num_bytes_ = 0;
};

struct CheckedBackup {
  BackupInfo info;
  std::vector<SummedFile> files;  // of the store
};
// Reads every file. NOT_FOUND: no backup; DATA_LOSS: which file is damaged or
// missing; FAILED_PRECONDITION: of another format.
absl::StatusOr<CheckedBackup> CheckBackup(const std::string& dir);

// Makes `store_dir` a store of what is in the backup `dir`, after checking both
// it and what was copied. A store that is there is an error (ALREADY_EXISTS),
// or, with `replace`, is kept beside it under the name that is returned.
// FAILED_PRECONDITION: a server has it open.
struct Restored {
  BackupInfo info;
  std::string kept_as;  // empty: there was none
};
absl::StatusOr<Restored> RestoreBackup(const std::string& dir,
                                       const std::string& store_dir,
                                       bool replace);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_BACKUP_FOLDER_H_
