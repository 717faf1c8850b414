// The operator's door: the service xcache.v1.Operator on a Unix socket that
// only the server's own user can open. A gRPC server of its own, so that no
// client of the other can reach it, and no token is of use here.
#ifndef XCACHE_SERVER_GRPC_OPERATOR_SERVER_H_
#define XCACHE_SERVER_GRPC_OPERATOR_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cachestore/cache_store.h"

namespace xcache {

class OperatorServer {
 public:
  // `store` must outlive it. A socket that a killed server left behind is
  // replaced. UNAVAILABLE: there cannot be a socket.
  static absl::StatusOr<std::unique_ptr<OperatorServer>> Listen(
      const std::string& socket, const std::string& store_dir,
      CacheStore& store);
  // Ends the calls that run.
  virtual ~OperatorServer() = default;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_OPERATOR_SERVER_H_
