#include "server/frontend/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "server/frontend/unique_fd.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

constexpr int kBacklog = 512;
// What a connection may have sent that nobody has read: the kernel would let it
// grow to megabytes. Enough for 2.5 MB/s at a round trip of 100 ms.
constexpr int kReceiveBytes = 256 << 10;
// How long to wait where accepting fails for want of descriptors or memory.
constexpr int kRetryMs = 100;
// How long new connections wait after one was cut off: what a flood began costs
// memory until it is worked off, which takes longer than beginning more of it.
constexpr std::chrono::milliseconds kFloodPause(50);
// An episode of refusals is logged once; it has ended after this long without.
constexpr std::chrono::seconds kEpisode(60);

struct Peer {
  std::string host;     // "1.2.3.4", "[::1]"
  std::string address;  // with the port
};

// An IPv6 host owns a /64: its interface's half of the address is its to
// choose.
Peer PeerOf(const sockaddr_storage& from) {
  char text[INET6_ADDRSTRLEN] = "";
  in6_addr v6 = reinterpret_cast<const sockaddr_in6&>(from).sin6_addr;
  uint16_t port = reinterpret_cast<const sockaddr_in6&>(from).sin6_port;
  in_addr v4{};
  if (from.ss_family == AF_INET) {
    v4 = reinterpret_cast<const sockaddr_in&>(from).sin_addr;
    port = reinterpret_cast<const sockaddr_in&>(from).sin_port;
  } else if (IN6_IS_ADDR_V4MAPPED(&v6)) {
    std::memcpy(&v4, &v6.s6_addr[12], sizeof(v4));
  } else {
    inet_ntop(AF_INET6, &v6, text, sizeof(text));
    const std::string address = absl::StrCat("[", text, "]:", ntohs(port));
    std::memset(&v6.s6_addr[8], 0, 8);
    inet_ntop(AF_INET6, &v6, text, sizeof(text));
    return {absl::StrCat("[", text, "]/64"), address};
  }
  inet_ntop(AF_INET, &v4, text, sizeof(text));
  return {text, absl::StrCat(text, ":", ntohs(port))};
}

// What tells one socket from another: connections belong to their owner, who
// closes them at any time, and numbers of descriptors are used again.
std::optional<ino_t> SocketInode(int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISSOCK(info.st_mode)) return std::nullopt;
  return info.st_ino;
}

// A descriptor of ours for the socket, or none where its owner has closed it.
UniqueFd ShareSocket(int fd, ino_t inode) {
  UniqueFd shared(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (SocketInode(shared.get()) != inode) return UniqueFd();
  return shared;
}

class ListenerImpl final : public Listener {
 public:
  explicit ListenerImpl(const ListenerOptions& options)
      : options_(options), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~ListenerImpl() override { Stop(); }

  absl::Status Bind() {
    const size_t colon = options_.address.rfind(':');
    std::string host = options_.address.substr(0, colon);
    std::string port = options_.address.substr(colon + 1);
    if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
      host = host.substr(1, host.size() - 2);
    }
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    if (const int error =
            getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
        error != 0) {
      return Failed(gai_strerror(error));
    }
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(
        found, &freeaddrinfo);
    int error = 0;
    for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
      // Of a name with two addresses one may be none of this machine.
      if (const int failed = BindOne(*at); failed != 0) error = failed;
      if (error == EADDRINUSE) break;
    }
    if (sockets_.empty() || error == EADDRINUSE) {
      return Failed(std::strerror(error));
    }
    address_ = absl::StrCat(options_.address.substr(0, colon), ":", port_);
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Start(HandOverFn hand_over) override {
    hand_over_ = std::move(hand_over);
    thread_ = std::thread([this] { Run(); });
  }

  void Stop() override {
    if (!thread_.joinable()) return;
    (void)eventfd_write(wake_.get(), 1);
    thread_.join();
    sockets_.clear();
  }

  void MarkTrusted(std::string_view peer) override {
    MutexLock lock(mu_);
    const auto found = connections_.find(std::string(peer));
    if (found != connections_.end()) found->second.trusted = true;
  }

  bool Close(std::string_view peer) override {
    MutexLock lock(mu_);
    const auto found = connections_.find(std::string(peer));
    if (found == connections_.end()) return false;
    CutOff(found);
    return true;
  }

  void CloseUntrusted() override {
    MutexLock lock(mu_);
    for (auto it = connections_.begin(); it != connections_.end();) {
      const auto next = std::next(it);
      if (!it->second.trusted) CutOff(it);
      it = next;
    }
  }

  Stats stats() override {
    MutexLock lock(mu_);
    ForgetClosed();
    stats_.open = static_cast<int>(connections_.size());
    return stats_;
  }

 private:
  struct Connection {
    int fd = -1;
    ino_t inode = 0;
    std::string host;
    steady_clock::time_point since;
    bool trusted = false;
  };
  using Connections = std::unordered_map<std::string, Connection>;

  absl::Status Failed(std::string_view why) const {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", options_.address, " (", options_.flag,
        "): the port is in use or the address not of this machine (",
        std::string(why), ")"));
  }

  // 0, or why it failed. All addresses of a name get the port of the first.
  int BindOne(const addrinfo& at) {
    UniqueFd fd(
        socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) return errno;
    const int on = 1, off = 0;
    (void)setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    sockaddr_storage to{};
    std::memcpy(&to, at.ai_addr, at.ai_addrlen);
    // sin_port and sin6_port are at the same place.
    auto& to_port = reinterpret_cast<sockaddr_in&>(to).sin_port;
    if (at.ai_family == AF_INET6) {
      (void)setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    if (to_port == 0) to_port = htons(port_);
    socklen_t size = at.ai_addrlen;
    if (bind(fd.get(), reinterpret_cast<sockaddr*>(&to), size) != 0 ||
        listen(fd.get(), kBacklog) != 0 ||
        getsockname(fd.get(), reinterpret_cast<sockaddr*>(&to), &size) != 0) {
      return errno;
    }
    // Connections inherit it.
    (void)setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBytes,
                     sizeof(kReceiveBytes));
    port_ = ntohs(to_port);
    sockets_.push_back(std::move(fd));
    return 0;
  }

  void Run() {
    std::vector<pollfd> watched = {{wake_.get(), POLLIN, 0}};
    for (const UniqueFd& socket : sockets_) {
      watched.push_back({socket.get(), POLLIN, 0});
    }
    while (true) {
      (void)poll(watched.data(), watched.size(), -1);
      if (watched[0].revents != 0) return;
      for (size_t i = 1; i < watched.size(); ++i) {
        if (watched[i].revents == 0) continue;
        if (!AcceptAll(watched[i].fd)) {
          // Out of descriptors or memory: the socket stays readable, so
          // without a pause this would spin.
          if (poll(watched.data(), 1, kRetryMs) > 0) return;
        }
      }
    }
  }

  // False: for now this machine has nothing left for a connection.
  bool AcceptAll(int socket) {
    while (true) {
      if (IsStoppedInPause()) return true;
      sockaddr_storage from{};
      socklen_t size = sizeof(from);
      UniqueFd fd(accept4(socket, reinterpret_cast<sockaddr*>(&from), &size,
                          SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (fd.get() < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return true;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
            errno == ENOMEM) {
          const int error = errno;
          MutexLock lock(mu_);
          ++stats_.accept_failures;
          Report("connections cannot be accepted", std::strerror(error));
          return false;
        }
        continue;  // that one connection has gone already
      }
      const int on = 1;
      (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      const Peer peer = PeerOf(from);
      if (Admit(fd.get(), peer)) {
        hand_over_(fd.release(), peer.address);
      } else {
        // A reset: no TIME_WAIT for those we refuse.
        const linger at_once{1, 0};
        (void)setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &at_once,
                         sizeof(at_once));
      }
    }
  }

  // Waits while a flood is worked off.
  bool IsStoppedInPause() XC_EXCLUDES(mu_) {
    while (true) {
      std::chrono::milliseconds rest;
      {
        MutexLock lock(mu_);
        rest = std::chrono::ceil<std::chrono::milliseconds>(
            paused_until_ - steady_clock::now());
      }
      if (rest.count() <= 0) return false;
      pollfd wake = {wake_.get(), POLLIN, 0};
      if (poll(&wake, 1, static_cast<int>(rest.count())) > 0) return true;
    }
  }

  bool Admit(int fd, const Peer& peer) XC_EXCLUDES(mu_) {
    const std::optional<ino_t> inode = SocketInode(fd);
    if (!inode.has_value()) return false;
    MutexLock lock(mu_);
    const auto full = [&]() XC_REQUIRES(mu_) {
      return static_cast<int>(connections_.size()) >= options_.max_connections;
    };
    const auto peer_full = [&]() XC_REQUIRES(mu_) {
      const auto found = per_host_.find(peer.host);
      return found != per_host_.end() &&
             found->second >= options_.max_connections_per_peer;
    };
    if (full() || peer_full()) ForgetClosed();
    if (peer_full() && !Evict(&peer.host)) {
      ++stats_.refused_per_peer;
      Report("connections refused", "too many from one address", peer.host);
      return false;
    }
    if (full() && !Evict(nullptr)) {
      ++stats_.refused_total;
      Report("connections refused", "too many in all", peer.host);
      return false;
    }
    ++stats_.accepted;
    Forget(connections_.find(peer.address));
    connections_[peer.address] = {fd, *inode, peer.host, steady_clock::now(),
                                  false};
    ++per_host_[peer.host];
    return true;
  }

  // Closes the oldest connection, of `host` where that is given, that may give
  // way. False: there is none.
  bool Evict(const std::string* host) XC_REQUIRES(mu_) {
    auto oldest = connections_.end();
    for (auto it = connections_.begin(); it != connections_.end(); ++it) {
      const Connection& have = it->second;
      if (have.trusted || (host != nullptr && have.host != *host)) continue;
      if (oldest == connections_.end() || have.since < oldest->second.since) {
        oldest = it;
      }
    }
    if (oldest == connections_.end() ||
        steady_clock::now() - oldest->second.since < options_.grace) {
      return false;
    }
    // Its owner reads the end of the stream and closes the descriptor.
    (void)shutdown(ShareSocket(oldest->second.fd, oldest->second.inode).get(),
                   SHUT_RDWR);
    Forget(oldest);
    ++stats_.evicted;
    return true;
  }

  void CutOff(Connections::iterator it) XC_REQUIRES(mu_) {
    // Unlike shutdown, this drops what was received and not read yet.
    sockaddr nobody{};
    nobody.sa_family = AF_UNSPEC;
    (void)connect(ShareSocket(it->second.fd, it->second.inode).get(), &nobody,
                  sizeof(nobody));
    ++stats_.cut_off;
    paused_until_ = steady_clock::now() + kFloodPause;
    Report("connections cut off", "a flood of calls", it->second.host);
    Forget(it);
  }

  void ForgetClosed() XC_REQUIRES(mu_) {
    for (auto it = connections_.begin(); it != connections_.end();) {
      const auto next = std::next(it);
      if (SocketInode(it->second.fd) != it->second.inode) Forget(it);
      it = next;
    }
  }

  void Forget(Connections::iterator it) XC_REQUIRES(mu_) {
    if (it == connections_.end()) return;
    const auto count = per_host_.find(it->second.host);
    if (--count->second == 0) per_host_.erase(count);
    connections_.erase(it);
  }

  // One line for each episode, however many connections it is about.
  void Report(std::string_view what, std::string_view why,
              const std::string& peer = "") XC_REQUIRES(mu_) {
    const auto now = steady_clock::now();
    if (now - last_trouble_ > kEpisode) {
      XC_LOG_WARN("connections", "state={} reason={} open={} peer={}",
                  LogValue(what), LogValue(why), connections_.size(),
                  LogValue(peer.empty() ? "-" : peer));
    }
    last_trouble_ = now;
  }

  const ListenerOptions options_;
  const UniqueFd wake_;
  std::vector<UniqueFd> sockets_;
  uint16_t port_ = 0;
  std::string address_;
  HandOverFn hand_over_;
  std::thread thread_;

  Mutex mu_;
  Connections connections_ XC_GUARDED_BY(mu_);  // by the peer's address
  std::unordered_map<std::string, int> per_host_ XC_GUARDED_BY(mu_);
  Stats stats_ XC_GUARDED_BY(mu_);
  steady_clock::time_point paused_until_ XC_GUARDED_BY(mu_);
  steady_clock::time_point last_trouble_ XC_GUARDED_BY(mu_) =
      steady_clock::time_point() - 2 * kEpisode;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Bind(
    const ListenerOptions& options) {
  auto listener = std::make_unique<ListenerImpl>(options);
  XC_RETURN_IF_ERROR(listener->Bind());
  return listener;
}

}  // namespace xcache
