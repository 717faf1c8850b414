// The server's credentials, from PEM files that are checked first: gRPC itself
// says no more of a bad one than that the port could not be bound.
#ifndef XCACHE_SERVER_GRPC_TLS_H_
#define XCACHE_SERVER_GRPC_TLS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"

namespace xcache {

struct TlsFiles {
  std::string cert;       // the chain, PEM; empty: plaintext
  std::string key;        // its private key, PEM
  std::string client_ca;  // where given, clients must show a certificate
};

// NOT_FOUND or INVALID_ARGUMENT, naming file and fault: not readable, no PEM,
// key and certificate do not belong together, expired.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(
    const TlsFiles& files);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_TLS_H_
