#include "client/command/files.h"

#include <cerrno>
#include <filesystem>

#include "engine/base/status_macros.h"

namespace xcache::command {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = 1 << 20;

}  // namespace

absl::Status Errno(const std::string& what) {
  return absl::ErrnoToStatus(errno, what);
}
absl::Status Failed(const std::error_code& error, const std::string& what) {
  return error ? absl::ErrnoToStatus(error.value(), what) : absl::OkStatus();
}

absl::Status SyncFolder(const std::string& path) {
  const File folder(path, O_RDONLY | O_DIRECTORY);
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) {
    return Errno("cannot sync " + path);
  }
  return absl::OkStatus();
}

std::string ParentOf(const std::string& path) {
  std::error_code error;
  return fs::absolute(path, error).parent_path().string();
}

std::string Named(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Errno("cannot write " + path);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status ReadPieces(
    const std::string& path,
    const std::function<absl::Status(std::string_view)>& take) {
  const File file(path, O_RDONLY);
  if (file.get() < 0) return Errno(path);
  std::string piece(kPieceBytes, '\0');
  for (;;) {
    const ssize_t n = ::read(file.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Errno("cannot read " + path);
    if (n == 0) return absl::OkStatus();
    XC_RETURN_IF_ERROR(take({piece.data(), static_cast<size_t>(n)}));
  }
}

}  // namespace xcache::command
