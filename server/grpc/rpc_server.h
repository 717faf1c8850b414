// The gRPC server: credentials, limits, our services, health and reflection.
// Listens from its start on; what it answers is the front end's gate's matter.
//
// What one peer can cost (rules R5, R10): connections are the listener's to
// limit; what they send is bounded by gRPC's resource quota, streams, header
// and message sizes; calls need a token before anything but their headers is
// read (credentials.h); nothing is decompressed.
#ifndef XCACHE_SERVER_GRPC_RPC_SERVER_H_
#define XCACHE_SERVER_GRPC_RPC_SERVER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/frontend/frontend.h"
#include "server/frontend/listener.h"
#include "server/frontend/tls.h"

namespace xcache {

struct RpcServerOptions {
  ListenerOptions listen;
  std::shared_ptr<const TlsIdentity> tls;  // nullptr: plaintext
  // What its peers' bytes may take while they arrive.
  int64_t arriving_bytes = RequestMemory::Of(int64_t{2} << 30).arriving_bytes();
  std::string model_name;        // that Triton's clients call the model by
  Frontend* frontend = nullptr;  // borrowed; outlives the server
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

  // Says to health probes whether the front end's gate lets requests in. Not
  // serving is for good.
  virtual void SetServing(bool serving) = 0;
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
