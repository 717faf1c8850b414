// Why a server could not be talked to, as far as gRPC's own messages tell.
// gRPC has one code for all of it, UNAVAILABLE; its texts are for its authors.
#ifndef XCACHE_CLIENT_CONNECTION_FAULT_H_
#define XCACHE_CLIENT_CONNECTION_FAULT_H_

#include <string>

#include "absl/status/status.h"

namespace xcache::client {

enum class ConnectionFault {
  kNone,         // the server answered
  kHost,         // its host's name is not known
  kRefused,      // nobody listens there
  kUnreachable,  // no way there
  kSilent,       // somebody accepts the connection and says nothing
  kNotGrpc,      // somebody speaks another protocol
  kClosed,       // closed at once: often TLS that was not spoken
  kNoTls,        // the server does not speak TLS
  kCertificate,  // the server's certificate is not to be trusted
  kServerName,   // it is another host's
  kLost,         // the connection broke during a call
};

// `status` with a message that says in words what gRPC's says, and its fault
// for FaultOf(). One that is the server's own stays as it is. `address`: whom
// it was to reach.
absl::Status ExplainConnection(const absl::Status& status,
                               const std::string& address);

ConnectionFault FaultOf(const absl::Status& status);

// InvalidArgument where `address` is neither host:port nor a name that gRPC
// resolves by a scheme of its own (unix:/path, dns:///host:port).
absl::Status CheckServerAddress(const std::string& address);

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_CONNECTION_FAULT_H_
