#include "server/grpc/health_service.h"

#include <optional>
#include <utility>

namespace xcache {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch call. Writes go out one at a time; of the statuses that come while
// one is under way only the last is sent, as the protocol allows.
class HealthService::Watcher final
    : public grpc::ServerWriteReactor<HealthCheckResponse>,
      public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(HealthService* service, bool known)
      : service_(service), known_(known) {}

  void Show(bool serving, bool shutdown) XC_EXCLUDES(mu_) {
    const ServingStatus status = !known_ ? HealthCheckResponse::SERVICE_UNKNOWN
                                 : serving ? HealthCheckResponse::SERVING
                                           : HealthCheckResponse::NOT_SERVING;
    {
      MutexLock lock(mu_);
      if (status != last_) next_ = last_ = status;
      ending_ = ending_ || shutdown;
    }
    Pump();
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mu_);
      writing_ = false;
      if (!ok) ending_ = true;
    }
    Pump();
  }
  void OnCancel() override {
    {
      MutexLock lock(mu_);
      ending_ = true;
      next_.reset();
    }
    Pump();
  }
  void OnDone() override { service_->Remove(shared_from_this()); }

 private:
  void Pump() XC_EXCLUDES(mu_) {
    bool write = false;
    {
      MutexLock lock(mu_);
      if (writing_ || finished_) return;
      if (next_.has_value()) {
        message_.set_status(*std::exchange(next_, std::nullopt));
        write = writing_ = true;
      } else if (ending_) {
        finished_ = true;
      } else {
        return;
      }
    }
    // Outside the lock: gRPC may call back on this very thread.
    if (write) {
      StartWrite(&message_);
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the watch has ended"));
    }
  }

  HealthService* const service_;
  const bool known_;
  Mutex mu_;
  ServingStatus last_ XC_GUARDED_BY(mu_) = HealthCheckResponse::UNKNOWN;
  std::optional<ServingStatus> next_ XC_GUARDED_BY(mu_);
  bool writing_ XC_GUARDED_BY(mu_) = false;
  bool ending_ XC_GUARDED_BY(mu_) = false;
  bool finished_ XC_GUARDED_BY(mu_) = false;
  HealthCheckResponse message_;  // while writing_: gRPC's
};

HealthService::HealthService(std::set<std::string> services, OnCallFn on_call)
    : services_([&] {
        services.insert("");
        return std::move(services);
      }()),
      on_call_(std::move(on_call)) {}

HealthService::~HealthService() = default;

void HealthService::SetServing(bool serving) { Update(serving, false); }

void HealthService::Shutdown() { Update(false, true); }

void HealthService::Update(bool serving, bool shutdown) {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    MutexLock lock(mu_);
    if (shutdown_) return;
    serving_ = serving;
    shutdown_ = shutdown;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->Show(serving, shutdown);
}

void HealthService::Remove(const std::shared_ptr<Watcher>& watcher) {
  MutexLock lock(mu_);
  watchers_.erase(watcher);
}

grpc::ServerUnaryReactor* HealthService::Check(
    grpc::CallbackServerContext* context, const HealthCheckRequest* request,
    HealthCheckResponse* response) {
  on_call_(*context);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!services_.contains(request->service())) {
    reactor->Finish(
        grpc::Status(grpc::StatusCode::NOT_FOUND, "unknown service"));
    return reactor;
  }
  {
    MutexLock lock(mu_);
    response->set_status(serving_ ? HealthCheckResponse::SERVING
                                  : HealthCheckResponse::NOT_SERVING);
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext* context, const HealthCheckRequest* request) {
  on_call_(*context);
  auto watcher =
      std::make_shared<Watcher>(this, services_.contains(request->service()));
  bool serving = false, shutdown = false;
  {
    MutexLock lock(mu_);
    watchers_.insert(watcher);
    serving = serving_;
    shutdown = shutdown_;
  }
  watcher->Show(serving, shutdown);
  return watcher.get();
}

}  // namespace xcache
