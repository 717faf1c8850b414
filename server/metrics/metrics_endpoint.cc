#include "server/metrics/metrics_endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"

namespace xcache {
namespace {

// civetweb keeps a thread on each connection until it has said what it wants.
// Those that say nothing must not keep a scrape waiting: there are threads for
// many of them, and they have a moment only.
constexpr char kThreads[] = "48";
constexpr char kRequestTimeoutMs[] = "1000";

// Connects to our own port and hangs up.
void Knock(const std::string& host, int port) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, host.c_str(), &to.sin_addr) != 1) return;
  // Where it listens on every address, it does on this one.
  if (to.sin_addr.s_addr == htonl(INADDR_ANY)) {
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  (void)connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to));
  close(fd);
}

class MetricsEndpointImpl final : public MetricsEndpoint {
 public:
  MetricsEndpointImpl(std::unique_ptr<prometheus::Exposer> exposer,
                      std::string host, int port)
      : exposer_(std::move(exposer)),
        host_(std::move(host)),
        port_(port),
        address_(absl::StrCat(host_, ":", port)) {}
  // civetweb looks whether it is to stop every two seconds only, or when
  // somebody connects: so we do.
  ~MetricsEndpointImpl() override {
    std::atomic<bool> stopped{false};
    std::thread knocker([&] {
      while (!stopped) {
        Knock(host_, port_);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    });
    exposer_.reset();
    stopped = true;
    knocker.join();
  }
  const std::string& address() const override { return address_; }

 private:
  std::unique_ptr<prometheus::Exposer> exposer_;
  const std::string host_;
  const int port_;
  const std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Listen(
    const std::string& address,
    std::weak_ptr<prometheus::Collectable> collectable) {
  // civetweb takes addresses, not names.
  std::string bind = address;
  if (bind.rfind("localhost:", 0) == 0) bind.replace(0, 9, "127.0.0.1");
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", bind, "num_threads",
                                 kThreads, "request_timeout_ms",
                                 kRequestTimeoutMs, "enable_keep_alive", "no"});
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (ports.empty()) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", address, " (--metrics-listen)"));
    }
    exposer->RegisterCollectable(collectable);
    return std::make_unique<MetricsEndpointImpl>(
        std::move(exposer), bind.substr(0, bind.rfind(':')), ports.front());
  } catch (const std::exception& error) {
    // civetweb says no more than "null context when constructing CivetServer".
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address,
        " (--metrics-listen): the port is in use or the address not of this "
        "machine (",
        error.what(), ")"));
  }
}

}  // namespace xcache
