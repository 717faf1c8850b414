// Owns a file descriptor.
#ifndef XCACHE_SERVER_FRONTEND_UNIQUE_FD_H_
#define XCACHE_SERVER_FRONTEND_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace xcache {

class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_UNIQUE_FD_H_
