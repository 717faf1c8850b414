// What every RPC has in common: who calls, until when, letting it in, and one
// place where it is counted and logged.
#ifndef XCACHE_SERVER_GRPC_CALL_H_
#define XCACHE_SERVER_GRPC_CALL_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpc/support/time.h"
#include "grpcpp/server_context.h"
#include "server/core/request.h"
#include "server/core/server_core.h"
#include "server/core/tenants/tenant_ledger.h"
#include "server/frontend/auth.h"
#include "server/frontend/flood_guard.h"
#include "server/frontend/listener.h"
#include "server/frontend/readiness_gate.h"
#include "server/frontend/request_bytes.h"
#include "server/frontend/stream_watchdog.h"
#include "server/frontend/trace_context.h"
#include "server/frontend/work_classes.h"
#include "server/metrics/metrics.h"

namespace xcache {

struct StreamLimits {
  // A client that has not read for this long loses its answer...
  std::chrono::milliseconds stall{30'000};
  // ...as does one that lets this much wait.
  size_t queued_bytes = size_t{4} << 20;
};

// What the services work with. All borrowed; all outlive every call.
struct ServiceDeps {
  Metrics* metrics = nullptr;
  const Authenticator* auth = nullptr;
  TenantLedger* tenants = nullptr;  // null: nobody has limits
  const ReadinessGate* gate = nullptr;
  Listener* listener = nullptr;
  FloodGuard* floods = nullptr;
  RequestBytes* request_bytes = nullptr;
  WorkClasses* workers = nullptr;
  StreamWatchdog* watchdog = nullptr;
  StreamLimits stream_limits;
};

class Call {
 public:
  // `context` and `request` must outlive the call up to Close.
  Call(const ServiceDeps& deps, Method method,
       grpc::CallbackServerContext* context,
       const google::protobuf::Message& request);

  // Lets the call in (token, gate, tenant's limit, memory; what costs nothing
  // comes first) and
  // has a thread of its class of work run `body`. Or else calls `refuse`, now
  // or on that thread, to end the call with what it is given: `body` will not
  // run then. REQUIRES: before anything below.
  using RefuseFn =
      std::function<void(const absl::Status&, int64_t retry_after_ms)>;
  void Start(std::function<void()> body, const RefuseFn& refuse);

  // Fills in what every request has. REQUIRES: started.
  void SetBase(const std::shared_ptr<Cancellation>& cancellation,
               RequestBase* base) const;

  const std::string& tenant() const { return tenant_; }
  ServerCore& core() const { return *core_; }

  // Counts and logs the call's end (`details`: " key=value"s) and gives the
  // status to finish it with. Call exactly once.
  grpc::Status Close(absl::Status status, int64_t retry_after_ms,
                     std::string_view details);

 private:
  absl::Status Admit();
  WorkClass work_class() const;
  // For log lines, " key=value"s: the request and its trace; the same and its
  // session.
  std::string DescribeRequest() const;
  std::string DescribeIds() const;

  const ServiceDeps& deps_;
  const Method method_;
  grpc::CallbackServerContext* const context_;
  const google::protobuf::Message& request_;
  const SteadyTime start_;
  SteadyTime deadline_;
  const std::string request_id_;
  const std::optional<TraceContext> trace_;
  std::string tenant_;
  ServerCore* core_ = nullptr;
  TenantHold place_;  // of the tenant's requests under way
  RequestBytes::Held held_;
};

// gRPC's `deadline` on the steady clock; max() where there is none. `now` is of
// the deadline's own clock, which is a monotonic one: a wall clock may jump
// between two readings.
SteadyTime ToSteady(gpr_timespec deadline, gpr_timespec now,
                    SteadyTime steady_now);

// gRPC's name of a peer ("ipv6:%5B::1%5D:5") as the listener knows it
// ("[::1]:5").
std::string PeerAddress(std::string_view grpc_peer);

// Whether a call begun at `start` and cancelled at `now` was cancelled by its
// deadline. The client's clock rings first: gRPC sends the time left rounded up
// to a millisecond or to about 1 %.
bool AtDeadline(SteadyTime start, SteadyTime deadline, SteadyTime now);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_CALL_H_
