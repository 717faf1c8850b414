#include "client/health.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <future>

namespace xcache::client {

grpc::Status HealthCheck(const std::shared_ptr<grpc::Channel>& channel,
                         grpc::ClientContext& context, bool* serving) {
  // Debian packages no generated health.proto, and generating our own would
  // clash with a server's in one process. Both messages have one field, with
  // number 1: a string and an enum. On the wire that is what protobuf's
  // wrappers of a string and an int32 are.
  using Request = google::protobuf::StringValue;
  using Response = google::protobuf::Int32Value;
  constexpr int kServing = 1;
  grpc::TemplatedGenericStub<Request, Response> stub(channel);
  Request request;
  Response response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(),
                 &request, &response,
                 [&](grpc::Status status) { done.set_value(status); });
  grpc::Status status = done.get_future().get();
  *serving = status.ok() && response.value() == kServing;
  return status;
}

}  // namespace xcache::client
