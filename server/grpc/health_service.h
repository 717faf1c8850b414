// grpc.health.v1: what Kubernetes and load balancers probe. Our own rather than
// gRPC's, which says SERVING from its first moment on and is a global switch.
#ifndef XCACHE_SERVER_GRPC_HEALTH_SERVICE_H_
#define XCACHE_SERVER_GRPC_HEALTH_SERVICE_H_

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/mutex.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace xcache {

// Thread-safe. NOT_SERVING until SetServing(true).
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // The services' full names; the server as a whole ("") is always there.
  // `on_call` is called with each call that arrives.
  using OnCallFn = std::function<void(grpc::CallbackServerContext&)>;
  HealthService(std::set<std::string> services, OnCallFn on_call);
  ~HealthService() override;

  void SetServing(bool serving) XC_EXCLUDES(mu_);
  // NOT_SERVING for good, and ends every Watch, now and later.
  void Shutdown() XC_EXCLUDES(mu_);

  grpc::ServerUnaryReactor* Check(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request,
      grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  using ServingStatus = grpc::health::v1::HealthCheckResponse::ServingStatus;
  class Watcher;

  void Update(bool serving, bool shutdown) XC_EXCLUDES(mu_);
  void Remove(const std::shared_ptr<Watcher>& watcher) XC_EXCLUDES(mu_);

  const std::set<std::string> services_;
  const OnCallFn on_call_;
  Mutex mu_;
  bool serving_ XC_GUARDED_BY(mu_) = false;
  bool shutdown_ XC_GUARDED_BY(mu_) = false;
  std::set<std::shared_ptr<Watcher>> watchers_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_HEALTH_SERVICE_H_
