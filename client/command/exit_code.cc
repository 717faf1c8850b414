#include "client/command/exit_code.h"

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "client/command/text.h"
#include "client/connection_fault.h"
#include "client/xcache_client.h"

namespace xcache::command {

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnreachable;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitDenied;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAborted:
      return kExitBusy;
    case absl::StatusCode::kAlreadyExists:
      return kExitExists;
    case absl::StatusCode::kDataLoss:
      return kExitDataLoss;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitFailed;
  }
}

namespace {

// What to do about it, in the command's own flags.
std::string_view Advice(client::ConnectionFault fault) {
  using client::ConnectionFault;
  switch (fault) {
    case ConnectionFault::kHost:
      return "is --address right?";
    case ConnectionFault::kRefused:
      return "is xcache-server running, and --address its --listen?";
    case ConnectionFault::kUnreachable:
      return "is --address right, and does a firewall let it pass?";
    case ConnectionFault::kSilent:
      return "is --address the server's --listen? It may also be stuck";
    case ConnectionFault::kNotGrpc:
      return "--address takes the server's --listen, not its "
             "--metrics-listen";
    case ConnectionFault::kClosed:
      return "a server with TLS needs --tls or --ca, and one that asks for "
             "certificates --cert and --key";
    case ConnectionFault::kNoTls:
      return "leave out --tls, --ca and --cert";
    case ConnectionFault::kCertificate:
      return "give its authority's file as --ca";
    case ConnectionFault::kServerName:
      return "give the name that it has as --server-name";
    case ConnectionFault::kLost:
      return "did xcache-server stop?";
    case ConnectionFault::kNone:
      break;
  }
  return "";
}

}  // namespace

std::string ErrorLine(const absl::Status& status) {
  std::string line = absl::StrCat("error: ", OneLine(status.message()));
  if (const auto after = client::RetryAfter(status)) {
    absl::StrAppend(&line, " (try again in ", absl::FormatDuration(*after),
                    ")");
  } else if (absl::IsUnauthenticated(status)) {
    absl::StrAppend(&line, " (give --token, or set XCACHE_TOKEN)");
  } else if (const auto advice = Advice(client::FaultOf(status));
             !advice.empty()) {
    absl::StrAppend(&line, " (", std::string(advice), ")");
  }
  return line;
}

}  // namespace xcache::command
