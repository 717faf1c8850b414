// Unix sockets by their paths, as gRPC takes them. A header alone: the
// installed client library needs no other part of base.
#ifndef XCACHE_ENGINE_BASE_UNIX_SOCKET_H_
#define XCACHE_ENGINE_BASE_UNIX_SOCKET_H_

#include <fcntl.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache {

// The system's limit, less the byte that ends it.
inline constexpr size_t kMaxSocketPathBytes = sizeof(sockaddr_un::sun_path) - 1;
// Of a socket's name in a folder of any length.
inline constexpr size_t kMaxSocketNameBytes =
    kMaxSocketPathBytes - sizeof("/proc/self/fd/2147483647/") + 1;

// Whether there can be a socket at `path`.
inline bool SocketPathFits(std::string_view path) {
  return path.size() <= kMaxSocketPathBytes ||
         path.size() - (path.rfind('/') + 1) <= kMaxSocketNameBytes;
}

// A path by which this process, while this lives, reaches the socket at `path`:
// one that is longer than the system takes goes by way of its folder's
// descriptor (proc(5), /proc/self/fd), so that a store may lie as deep as its
// files may. Where there is no such folder, that path is not there either.
class ReachableSocket {
 public:
  explicit ReachableSocket(std::string path) : path_(std::move(path)) {
    const size_t slash = path_.rfind('/');
    if (path_.size() <= kMaxSocketPathBytes || slash == path_.npos) return;
    folder_ = ::open(path_.substr(0, slash).c_str(),
                     O_PATH | O_DIRECTORY | O_CLOEXEC);
    path_ = absl::StrCat("/proc/self/fd/", folder_, path_.substr(slash));
  }
  ~ReachableSocket() {
    if (folder_ >= 0) ::close(folder_);
  }
  ReachableSocket(const ReachableSocket&) = delete;
  ReachableSocket& operator=(const ReachableSocket&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int folder_ = -1;
};

// "unix:PATH" as a URI, with what has a meaning there escaped.
inline std::string UnixSocketUri(std::string_view path) {
  constexpr std::string_view kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-._~";
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string uri = "unix:";
  for (const char c : path) {
    if (kPlain.find(c) != kPlain.npos) {
      uri.push_back(c);
      continue;
    }
    const auto byte = static_cast<unsigned char>(c);
    uri.push_back('%');
    uri.push_back(kDigits[byte >> 4]);
    uri.push_back(kDigits[byte & 15]);
  }
  return uri;
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_UNIX_SOCKET_H_
