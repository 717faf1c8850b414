#include "tests/support/http_peer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace xcache {
namespace {

void Check(bool condition, const char* what) {
  if (condition) return;
  std::perror(what);
  std::abort();
}

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return text;
}

// The first request in `bytes`, taken out of them; false: not whole yet.
bool TakeRequest(std::string& bytes, HttpPeer::Request* request) {
  const size_t end = bytes.find("\r\n\r\n");
  if (end == bytes.npos) return false;
  *request = {};
  size_t at = bytes.find("\r\n");
  const std::string line = bytes.substr(0, at);
  const size_t space = line.find(' ');
  request->method = line.substr(0, space);
  request->target = line.substr(space + 1, line.rfind(' ') - space - 1);
  for (at += 2; at < end + 2;) {
    const size_t next = bytes.find("\r\n", at);
    const std::string header = bytes.substr(at, next - at);
    const size_t colon = header.find(':');
    size_t value = colon + 1;
    while (value < header.size() && header[value] == ' ') ++value;
    request->headers[Lower(header.substr(0, colon))] = header.substr(value);
    at = next + 2;
  }
  size_t length = 0;
  if (const auto it = request->headers.find("content-length");
      it != request->headers.end()) {
    length = std::stoul(it->second);
  }
  if (bytes.size() < end + 4 + length) return false;
  request->body = bytes.substr(end + 4, length);
  request->bytes = bytes.substr(0, end + 4 + length);
  bytes.erase(0, end + 4 + length);
  return true;
}

bool SendAll(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n =
        ::send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (n <= 0) return false;
    at += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

HttpPeer::HttpPeer(Handler handler) : handler_(std::move(handler)) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  Check(listener_ >= 0, "socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  Check(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0,
        "bind");
  Check(::listen(listener_, 128) == 0, "listen");
  Check(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address),
                      &size) == 0,
        "getsockname");
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

HttpPeer::~HttpPeer() {
  std::vector<std::thread> threads;
  {
    MutexLock lock(mu_);
    stop_ = true;
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
  }
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  {
    MutexLock lock(mu_);
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
  ::close(listener_);
}

int HttpPeer::num_connections() const {
  MutexLock lock(mu_);
  return num_connections_;
}

void HttpPeer::Accept() {
  for (;;) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    MutexLock lock(mu_);
    if (fd < 0 || stop_) {
      if (fd >= 0) ::close(fd);
      return;
    }
    open_.push_back(fd);
    const int number = ++num_connections_;
    threads_.emplace_back([this, fd, number] { Serve(fd, number); });
  }
}

void HttpPeer::Serve(int fd, int number) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  std::string bytes;
  std::vector<char> buffer(size_t{64} << 10);
  bool keep = true;
  while (keep) {
    Request request;
    if (!TakeRequest(bytes, &request)) {
      const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
      if (n <= 0) break;
      bytes.append(buffer.data(), static_cast<size_t>(n));
      continue;
    }
    request.connection = number;
    const Reply reply = handler_(request);
    for (auto left = reply.wait; left.count() > 0;) {
      const auto step = std::min(left, std::chrono::milliseconds(10));
      std::this_thread::sleep_for(step);
      left -= step;
      MutexLock lock(mu_);
      if (stop_) break;
    }
    keep = SendAll(fd, reply.bytes) && reply.then == Reply::Then::kKeep;
    if (reply.then == Reply::Then::kReset) {
      const linger now{.l_onoff = 1, .l_linger = 0};
      ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    }
  }
  MutexLock lock(mu_);
  std::erase(open_, fd);
  ::close(fd);
}

std::string HttpBytes(int code, const std::string& body,
                      const HttpHeaders& headers) {
  std::string bytes = "HTTP/1.1 " + std::to_string(code) + " Says So\r\n";
  for (const auto& [name, value] : headers) {
    bytes += name + ": " + value + "\r\n";
  }
  if (code != 304 && code != 204) {
    bytes += "content-length: " + std::to_string(body.size()) + "\r\n";
  }
  return bytes + "\r\n" + body;
}

}  // namespace xcache
