// RPCs with one answer: those that run on a worker thread, and Score, which
// waits for the core.
#ifndef XCACHE_SERVER_GRPC_UNARY_CALL_H_
#define XCACHE_SERVER_GRPC_UNARY_CALL_H_

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "server/grpc/call.h"
#include "xcache/v1/inference.pb.h"

namespace xcache {

// Lets the call in and runs `body` on a worker thread; what it returns is the
// RPC's status.
grpc::ServerUnaryReactor* RunUnary(const ServiceDeps& deps, Method method,
                                   grpc::CallbackServerContext* context,
                                   const google::protobuf::Message& request,
                                   std::function<absl::Status(Call&)> body);

// The Score RPC: collects the tokens that the core scores.
grpc::ServerUnaryReactor* RunScore(const ServiceDeps& deps,
                                   grpc::CallbackServerContext* context,
                                   const v1::ScoreRequest* request,
                                   v1::ScoreResponse* response);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_UNARY_CALL_H_
