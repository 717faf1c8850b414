#include "engine/base/replace_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

absl::Status FileError(std::string_view what, const std::string& path) {
  return absl::InternalError(absl::StrCat("cannot ", std::string(what), " ",
                                          path, ": ", std::strerror(errno)));
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return FileError("write", path);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReplaceFile(const std::string& dir, std::string_view name,
                         std::span<const std::string_view> parts) {
  const std::string path = absl::StrCat(dir, "/", std::string(name));
  std::string temporary = path + ".XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return FileError("create", temporary);
  absl::Status status;
  for (const std::string_view part : parts) {
    if (status.ok()) status = WriteAll(fd, part, temporary);
  }
  if (status.ok() && fsync(fd) != 0) status = FileError("sync", temporary);
  if (close(fd) != 0 && status.ok()) status = FileError("close", temporary);
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = FileError("rename to", path);
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  const int dir_fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir_fd < 0) return FileError("open", dir);
  if (fsync(dir_fd) != 0) status = FileError("sync", dir);
  close(dir_fd);
  return status;
}

}  // namespace xcache
