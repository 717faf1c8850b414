// What every RPC has in common, beside what every call has
// (server/frontend/frontend_call.h): what gRPC knows of it.
#ifndef XCACHE_SERVER_GRPC_CALL_H_
#define XCACHE_SERVER_GRPC_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/message.h"
#include "grpc/support/time.h"
#include "grpcpp/server_context.h"
#include "server/core/request.h"
#include "server/core/server_core.h"
#include "server/frontend/flood_guard.h"
#include "server/frontend/frontend.h"
#include "server/frontend/frontend_call.h"
#include "server/frontend/listener.h"
#include "server/frontend/work_classes.h"
#include "server/metrics/metrics.h"

namespace xcache {

// What the services work with. All borrowed; all outlive every call.
struct ServiceDeps {
  Frontend* frontend = nullptr;
  Listener* listener = nullptr;
  FloodGuard* floods = nullptr;
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
  using RefuseFn = FrontendCall::RefuseFn;
  void Start(std::function<void()> body, const RefuseFn& refuse);

  // Fills in what every request has. REQUIRES: started.
  void SetBase(const std::shared_ptr<Cancellation>& cancellation,
               RequestBase* base) const {
    call_.SetBase(cancellation, base);
  }

  ServerCore& core() const { return call_.core(); }
  const std::string& tenant() const { return call_.tenant(); }

  // Counts and logs the call's end (`details`: " key=value"s) and gives the
  // status to finish it with. Call exactly once.
  grpc::Status Close(absl::Status status, int64_t retry_after_ms,
                     std::string_view details);

 private:
  absl::Status Admit();
  WorkClass work_class() const;

  const ServiceDeps& deps_;
  const Method method_;
  grpc::CallbackServerContext* const context_;
  const google::protobuf::Message& request_;
  FrontendCall call_;
};

// What gRPC knows of a call.
CallFacts FactsOf(Method method, const grpc::CallbackServerContext& context,
                  const google::protobuf::Message& request);

// A call's first message is there: the tenant of its token. UNAUTHENTICATED.
absl::StatusOr<std::string> Arrive(const ServiceDeps& deps,
                                   grpc::CallbackServerContext& context);

// What a call ends with; its trailers are set.
grpc::Status ToGrpcStatus(const FrontendCall::Ending& ending,
                          const std::string& request_id,
                          grpc::CallbackServerContext& context);

// gRPC's `deadline` on the steady clock; max() where there is none. `now` is of
// the deadline's own clock, which is a monotonic one: a wall clock may jump
// between two readings.
SteadyTime ToSteady(gpr_timespec deadline, gpr_timespec now,
                    SteadyTime steady_now);

// gRPC's name of a peer ("ipv6:%5B::1%5D:5") as the listener knows it
// ("[::1]:5").
std::string PeerAddress(std::string_view grpc_peer);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_CALL_H_
