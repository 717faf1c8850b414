// The gRPC server: credentials, limits, our services, health and reflection.
// Listens from its start on; what it answers is the gate's matter.
//
// What one peer can cost (rules R5, R10): connections are the listener's to
// limit; what they send is bounded by gRPC's resource quota, streams, header
// and message sizes; calls need a token before anything but their headers is
// read (credentials.h); nothing is decompressed.
#ifndef XCACHE_SERVER_GRPC_RPC_SERVER_H_
#define XCACHE_SERVER_GRPC_RPC_SERVER_H_

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/frontend/auth.h"
#include "server/frontend/listener.h"
#include "server/frontend/readiness_gate.h"
#include "server/frontend/request_bytes.h"
#include "server/grpc/call.h"
#include "server/grpc/tls.h"
#include "server/metrics/metrics.h"

namespace xcache {

struct RpcServerOptions {
  ListenerOptions listen;
  std::shared_ptr<const TlsIdentity> tls;  // nullptr: plaintext
  StreamLimits stream_limits;
  RequestMemory request_memory = RequestMemory::Of(int64_t{2} << 30);
  // Borrowed; outlive the server.
  Metrics* metrics = nullptr;
  const Authenticator* auth = nullptr;
  TenantLedger* tenants = nullptr;  // null: nobody has limits
};

class RpcServer {
 public:
  // UNAVAILABLE: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Listen(
      const RpcServerOptions& options);
  // Ends every call that is left.
  virtual ~RpcServer() = default;

  // With the port that was really bound.
  virtual const std::string& address() const = 0;
  virtual Listener::Stats connections() = 0;
  // Of the requests that are worked on now.
  virtual int64_t request_bytes() const = 0;

  // What loading is at; shown to who calls meanwhile.
  virtual void SetProgress(std::string_view what, double fraction) = 0;
  // Lets requests in, and says so to health probes. `core` must outlive the
  // server, or the end of Shutdown.
  virtual void Serve(ServerCore* core) = 0;
  // Lets no more requests in, and says so to health probes. What runs goes on.
  virtual void StopServing() = 0;
  // Waits for the calls that there are, at `deadline` cancels the rest, and
  // closes the port.
  virtual void Shutdown(std::chrono::system_clock::time_point deadline) = 0;
};

// Sends the log lines of gRPC and protobuf to our logger, at debug level: gRPC
// writes several for a port that is in use, where we write one, and protobuf
// one for every request that is no UTF-8.
void QuietLibraryLogging();

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_RPC_SERVER_H_
