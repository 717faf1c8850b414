// Serves /metrics over HTTP (prometheus-cpp's Exposer over civetweb).
#ifndef XCACHE_SERVER_METRICS_METRICS_ENDPOINT_H_
#define XCACHE_SERVER_METRICS_METRICS_ENDPOINT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "prometheus/collectable.h"

namespace xcache {

class MetricsEndpoint {
 public:
  // Listens on `address` ("host:port", port 0 for a free one) and answers
  // scrapes with `collectable` for as long as both live. UNAVAILABLE: the
  // address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Listen(
      const std::string& address,
      std::weak_ptr<prometheus::Collectable> collectable);
  virtual ~MetricsEndpoint() = default;

  // With the port that was really bound.
  virtual const std::string& address() const = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_METRICS_METRICS_ENDPOINT_H_
