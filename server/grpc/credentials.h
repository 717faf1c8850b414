// What gRPC does before it reads anything of a call: TLS, and the token.
//
// gRPC's own services see a call when its first message is there whole: up to
// that a peer without a token could have 16 MiB held for each stream. Here the
// headers alone decide. The price: a call that is refused here ends with a
// code and a message, without details or trailers.
#ifndef XCACHE_SERVER_GRPC_CREDENTIALS_H_
#define XCACHE_SERVER_GRPC_CREDENTIALS_H_

#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_context.h"
#include "server/frontend/tls.h"

namespace xcache {

struct CallHeaders {
  std::string_view path;  // "/xcache.v1.Inference/Chat"
  const std::string_view* authorization = nullptr;  // nullptr: there is none
  // The same for all calls of a connection, and for no others while it lasts.
  const void* connection = nullptr;
};

// Whether a call may begin. Called on gRPC's threads; must not block.
using AdmitCallFn = std::function<absl::Status(const CallHeaders&)>;

// CallHeaders::connection of a call that has arrived.
const void* ConnectionOf(grpc::CallbackServerContext& context);

// `tls` is nullptr for plaintext; each handshake uses what it holds by then.
// `admit` may be empty.
std::shared_ptr<grpc::ServerCredentials> MakeCredentials(
    std::shared_ptr<const TlsIdentity> tls, AdmitCallFn admit);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_CREDENTIALS_H_
