// One Check of the standard health service (grpc.health.v1). Internal.
#ifndef XCACHE_CLIENT_HEALTH_H_
#define XCACHE_CLIENT_HEALTH_H_

#include <grpcpp/grpcpp.h>

#include <memory>

namespace xcache::client {

// The whole server's state. A server that answers UNIMPLEMENTED or NOT_FOUND
// has no health service, which is an error here.
grpc::Status HealthCheck(const std::shared_ptr<grpc::Channel>& channel,
                         grpc::ClientContext& context, bool* serving);

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_HEALTH_H_
