// Unix sockets by their paths, as gRPC takes them. A header alone: the
// installed client library needs no other part of base.
#ifndef XCACHE_ENGINE_BASE_UNIX_SOCKET_H_
#define XCACHE_ENGINE_BASE_UNIX_SOCKET_H_

#include <sys/un.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace xcache {

// The system's limit, less the byte that ends it.
inline constexpr size_t kMaxSocketPathBytes = sizeof(sockaddr_un::sun_path) - 1;

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
