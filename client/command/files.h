// Files as a backup needs them: written whole, synced, read in pieces. No
// symbolic link is followed at a path's end.
#ifndef XCACHE_CLIENT_COMMAND_FILES_H_
#define XCACHE_CLIENT_COMMAND_FILES_H_

#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/status/status.h"

namespace xcache::command {

// What errno, or `error`, says of `what`.
absl::Status Errno(const std::string& what);
absl::Status Failed(const std::error_code& error, const std::string& what);

// A descriptor that closes itself; a new file is its owner's alone.
class File {
 public:
  File(const std::string& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

absl::Status SyncFolder(const std::string& path);
std::string ParentOf(const std::string& path);
// Without slashes at its end, which have no name of their own.
std::string Named(std::string path);
absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path);
// NOT_FOUND where it cannot be opened as it is not there.
absl::Status ReadPieces(
    const std::string& path,
    const std::function<absl::Status(std::string_view)>& take);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_FILES_H_
