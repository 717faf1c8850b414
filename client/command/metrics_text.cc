#include "client/command/metrics_text.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace xcache::command {
namespace {

bool ParseValue(std::string_view text, double* out) {
  if (text == "+Inf") {
    *out = std::numeric_limits<double>::infinity();
    return true;
  }
  return absl::SimpleAtod(absl::string_view(text.data(), text.size()), out);
}

// `{a="b",c="d"}` from *at on; leaves *at after it.
bool ParseLabels(std::string_view line, size_t* at, Labels* out) {
  size_t i = *at + 1;
  while (i < line.size() && line[i] != '}') {
    const size_t equals = line.find("=\"", i);
    if (equals == std::string_view::npos) return false;
    const std::string name(line.substr(i, equals - i));
    std::string value;
    for (i = equals + 2; i < line.size() && line[i] != '"'; ++i) {
      if (line[i] == '\\' && i + 1 < line.size()) {
        ++i;
        value.push_back(line[i] == 'n' ? '\n' : line[i]);
      } else {
        value.push_back(line[i]);
      }
    }
    if (i == line.size()) return false;
    (*out)[name] = value;
    ++i;
    if (i < line.size() && line[i] == ',') ++i;
  }
  if (i >= line.size()) return false;
  *at = i + 1;
  return true;
}

bool Includes(const Labels& labels, const Labels& wanted) {
  return std::all_of(wanted.begin(), wanted.end(), [&](const auto& pair) {
    const auto it = labels.find(pair.first);
    return it != labels.end() && it->second == pair.second;
  });
}

absl::Status SocketError(const std::string& address, int error) {
  return absl::UnavailableError(absl::StrCat(
      "cannot read metrics at ", address, ": ", std::strerror(error),
      " (is --metrics-address the server's --metrics-listen?)"));
}

struct Socket {
  explicit Socket(int fd_in) : fd(fd_in) {}
  ~Socket() {
    if (fd >= 0) close(fd);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  const int fd;
};

}  // namespace

absl::StatusOr<MetricsText> MetricsText::Parse(std::string_view text) {
  MetricsText out;
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.empty() || line[0] == '#') continue;
    const auto bad = [&] {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " of the metrics page is no sample"));
    };
    size_t at = line.find_first_of("{ ");
    if (at == std::string_view::npos) return bad();
    const std::string name(line.substr(0, at));
    Sample sample;
    if (line[at] == '{' && !ParseLabels(line, &at, &sample.labels)) {
      return bad();
    }
    const size_t start = line.find_first_not_of(' ', at);
    if (start == std::string_view::npos) return bad();
    const size_t stop = line.find(' ', start);
    const std::string_view value = line.substr(
        start, stop == std::string_view::npos ? stop : stop - start);
    if (!ParseValue(value, &sample.value)) return bad();
    out.samples_[name].push_back(std::move(sample));
  }
  return out;
}

double MetricsText::Sum(const std::string& name, const Labels& labels) const {
  const auto it = samples_.find(name);
  double sum = 0;
  if (it == samples_.end()) return sum;
  for (const Sample& sample : it->second) {
    if (Includes(sample.labels, labels)) sum += sample.value;
  }
  return sum;
}

std::string MetricsText::Label(const std::string& name,
                               const std::string& label) const {
  const auto it = samples_.find(name);
  if (it == samples_.end() || it->second.empty()) return "";
  const auto found = it->second[0].labels.find(label);
  return found == it->second[0].labels.end() ? "" : found->second;
}

std::optional<double> MetricsText::Quantile(const std::string& histogram,
                                            double q,
                                            const MetricsText* before) const {
  const auto counts = [&](const MetricsText& from, double sign,
                          std::map<double, double>* out) {
    const auto it = from.samples_.find(histogram + "_bucket");
    if (it == from.samples_.end()) return;
    for (const Sample& sample : it->second) {
      const auto le = sample.labels.find("le");
      double bound = 0;
      if (le != sample.labels.end() && ParseValue(le->second, &bound) &&
          !std::isnan(bound)) {
        (*out)[bound] += sign * sample.value;
      }
    }
  };
  std::map<double, double> cumulative;  // upper bound -> count up to it
  counts(*this, 1, &cumulative);
  if (before != nullptr) counts(*before, -1, &cumulative);
  if (cumulative.empty()) return std::nullopt;
  const double total = cumulative.rbegin()->second;
  if (!(total > 0)) return std::nullopt;
  double low = 0;
  double below = 0;
  for (const auto& [bound, count] : cumulative) {
    if (count >= q * total) {
      if (std::isinf(bound)) return low;
      if (count == below) return bound;
      const double value =
          low + (bound - low) * (q * total - below) / (count - below);
      // Infinite or huge bounds and counts: no page of ours has such.
      if (!std::isfinite(value)) return std::nullopt;
      return value;
    }
    low = bound;
    below = count;
  }
  return low;
}

absl::StatusOr<std::string> HttpGet(const std::string& address,
                                    const std::string& path) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(
          host.c_str(), address.substr(colon + 1).c_str(), &hints, &found);
      error != 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot read metrics at ", address, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> guard(found,
                                                                 freeaddrinfo);
  const Socket sock(socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC,
                           found->ai_protocol));
  const timeval timeout{5, 0};
  setsockopt(sock.fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(sock.fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  if (sock.fd < 0 || connect(sock.fd, found->ai_addr, found->ai_addrlen) != 0) {
    return SocketError(address, errno);
  }
  // HTTP/1.0: the body ends with the connection, so there is no chunking.
  const std::string request =
      absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
  for (size_t sent = 0; sent < request.size();) {
    const ssize_t n = send(sock.fd, request.data() + sent,
                           request.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return SocketError(address, errno);
    sent += static_cast<size_t>(n);
  }
  constexpr size_t kLimit = 16 << 20;
  std::string response;
  std::array<char, 16384> buffer;
  while (response.size() < kLimit) {
    const ssize_t n = recv(sock.fd, buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SocketError(address, errno);
    if (n == 0) break;
    response.append(buffer.data(), static_cast<size_t>(n));
  }
  const size_t body = response.find("\r\n\r\n");
  const std::string status = response.substr(0, response.find("\r\n"));
  if (body == std::string::npos || !absl::StrContains(status, " 200")) {
    return absl::UnavailableError(absl::StrCat(
        "cannot read metrics at ", address, ": ",
        absl::StartsWith(status, "HTTP/") ? status : "no HTTP answer",
        " (is --metrics-address the server's --metrics-listen?)"));
  }
  return response.substr(body + 4);
}

}  // namespace xcache::command
