#include "engine/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

absl::Status SystemError(const char* call, const std::string& path, int error) {
  const std::string message =
      absl::StrCat(path, ": ", call, ": ", std::strerror(error));
  return error == ENOENT || error == ENOTDIR
             ? absl::NotFoundError(message)
             : absl::InvalidArgumentError(message);
}

FileStamp StampOf(const struct stat& info) {
  return {.device = info.st_dev,
          .inode = info.st_ino,
          .size = info.st_size,
          .modified_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 +
                         info.st_mtim.tv_nsec};
}

// Hashes bytes in memory, in a thread of its own, as they come.
class Hasher {
 public:
  Hasher(const uint8_t* data, size_t size)
      : thread_([this, data, size] {
          for (size_t done = 0; done < size;) {
            ready_.wait(done);
            const size_t end = ready_;
            if (end == kStop) return;
            sha_.Update(data + done, end - done);
            done = end;
          }
        }) {}
  ~Hasher() {
    if (!thread_.joinable()) return;
    Advance(kStop);
    thread_.join();
  }
  // The first `end` bytes are there.
  void Advance(size_t end) {
    ready_ = end;
    ready_.notify_one();
  }
  // REQUIRES: all bytes are there. Call once.
  Digest Finish() {
    thread_.join();
    return sha_.Finish();
  }

 private:
  static constexpr size_t kStop = ~size_t{0};
  std::atomic<size_t> ready_{0};
  Sha256 sha_;
  std::thread thread_;  // the last: it uses the others
};

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// Without O_NONBLOCK a named pipe would keep us here.
Descriptor OpenToRead(const std::string& path) {
  return Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
}

absl::Status ReadUpTo(int fd, const std::string& path, size_t end,
                      std::span<uint8_t> to, size_t* at) {
  while (*at < end) {
    const ssize_t n = ::read(fd, to.data() + *at, end - *at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError("read", path, errno);
    if (n == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": expected ", to.size(), " bytes, found ", *at,
                       ": it was cut short while it was read"));
    }
    *at += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSmall(const std::string& path, size_t max_bytes,
                                      bool secret) {
  const auto failed = [&path](int error) {
    return absl::Status(error == ENOENT || error == ENOTDIR
                            ? absl::StatusCode::kNotFound
                            : absl::StatusCode::kPermissionDenied,
                        absl::StrCat(path, ": ", std::strerror(error)));
  };
  const Descriptor fd = OpenToRead(path);
  struct stat info {};
  if (fd.get() < 0 || ::fstat(fd.get(), &info) != 0) return failed(errno);
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
    const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(errno);
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

absl::StatusOr<FileStamp> StampOf(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return SystemError("stat", path, errno);
  }
  return StampOf(info);
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes) {
  return ReadSmall(path, max_bytes, /*secret=*/false);
}

absl::StatusOr<std::string> ReadSecretFile(const std::string& path,
                                           size_t max_bytes) {
  return ReadSmall(path, max_bytes, /*secret=*/true);
}

absl::StatusOr<FileBytes> FileBytes::Read(const std::string& path,
                                          const CheckFn& check,
                                          Digest* sha256) {
  const Descriptor fd = OpenToRead(path);
  if (fd.get() < 0) return SystemError("open", path, errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return SystemError("stat", path, errno);
  if (!S_ISREG(info.st_mode) || info.st_size <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a file with something in it, found ",
        S_ISREG(info.st_mode) ? "an empty file" : "no regular file"));
  }
  FileBytes file;
  const auto size = static_cast<size_t>(info.st_size);
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        path, ": no memory for ", size, " bytes: ", std::strerror(errno)));
  }
  // Fewer page faults; where the kernel refuses, nothing is lost.
  (void)::madvise(memory, size, MADV_HUGEPAGE);
  file.data_ = static_cast<uint8_t*>(memory);
  file.size_ = size;
  file.stamp_ = StampOf(info);

  size_t at = 0;
  const std::span<uint8_t> to(file.data_, size);
  const size_t start = std::min(size, kStartBytes);
  XC_RETURN_IF_ERROR(ReadUpTo(fd.get(), path, start, to, &at));
  if (check) XC_RETURN_IF_ERROR(check(to.first(start)));
  std::optional<Hasher> hasher;
  if (sha256 != nullptr) hasher.emplace(file.data_, size);
  while (at < size) {
    constexpr size_t kAtOnce = size_t{4} << 20;
    XC_RETURN_IF_ERROR(
        ReadUpTo(fd.get(), path, std::min(size, at + kAtOnce), to, &at));
    if (hasher.has_value()) hasher->Advance(at);
  }
  if (hasher.has_value()) {
    hasher->Advance(size);
    *sha256 = hasher->Finish();
  }
  if (::fstat(fd.get(), &info) != 0) return SystemError("stat", path, errno);
  if (StampOf(info) != file.stamp_) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": it was changed while it was read"));
  }
  // Nobody changes an identity's bytes by mistake.
  if (::mprotect(memory, size, PROT_READ) != 0) {
    return SystemError("mprotect", path, errno);
  }
  return file;
}

FileBytes::~FileBytes() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

FileBytes::FileBytes(FileBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      stamp_(other.stamp_) {}

FileBytes& FileBytes::operator=(FileBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  stamp_ = other.stamp_;
  return *this;
}

void FileBytes::Release(std::span<const uint8_t> part) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto base = static_cast<size_t>(part.data() - data_);
  const size_t first = (base + page - 1) / page * page;
  const size_t last = (base + part.size()) / page * page;
  if (first >= last) return;
  (void)::madvise(data_ + first, last - first, MADV_DONTNEED);
  (void)::mprotect(data_ + first, last - first, PROT_NONE);
}

}  // namespace xcache
