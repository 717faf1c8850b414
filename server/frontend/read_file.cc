#include "server/frontend/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/frontend/unique_fd.h"

namespace xcache {
namespace {

absl::Status Failed(const std::string& path, int error) {
  return absl::Status(error == ENOENT || error == ENOTDIR
                          ? absl::StatusCode::kNotFound
                          : absl::StatusCode::kPermissionDenied,
                      absl::StrCat(path, ": ", std::strerror(error)));
}

absl::StatusOr<std::string> Read(const std::string& path, size_t max_bytes,
                                 bool secret) {
  // O_NONBLOCK: not to wait for a writer where somebody names a pipe.
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info {};
  if (fd.get() < 0 || fstat(fd.get(), &info) != 0) return Failed(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  }
  if (secret && (info.st_mode & S_IRWXO) != 0) {
    return absl::PermissionDeniedError(absl::StrFormat(
        "%s: everybody on this machine may use it (mode %04o): chmod o-rwx it",
        path, info.st_mode & 07777));
  }
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t n = read(fd.get(), buffer, sizeof(buffer));
    if (n < 0) return Failed(path, errno);
    if (n == 0) break;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": larger than ", max_bytes, " bytes"));
    }
  }
  if (text.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": empty"));
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes) {
  return Read(path, max_bytes, false);
}

absl::StatusOr<std::string> ReadSecretFile(const std::string& path,
                                           size_t max_bytes) {
  return Read(path, max_bytes, true);
}

}  // namespace xcache
