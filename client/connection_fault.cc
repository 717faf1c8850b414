#include "client/connection_fault.h"

#include <array>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace xcache::client {
namespace {

constexpr char kFaultPayload[] = "xcache/connection-fault";

struct Sign {
  const char* text;  // in gRPC's message
  ConnectionFault fault;
};

// As gRPC 1.51 with OpenSSL (Debian 12) and with BoringSSL say it; the first
// that matches counts.
constexpr std::array kSigns = {
    Sign{"DNS resolution failed", ConnectionFault::kHost},
    Sign{"WRONG_VERSION_NUMBER", ConnectionFault::kNoTls},
    Sign{"wrong version number", ConnectionFault::kNoTls},
    Sign{"CERTIFICATE_VERIFY_FAILED", ConnectionFault::kCertificate},
    Sign{"certificate verify failed", ConnectionFault::kCertificate},
    Sign{"is not in peer certificate", ConnectionFault::kServerName},
    Sign{"Failed parsing HTTP/2", ConnectionFault::kNotGrpc},
    Sign{"http1.x server", ConnectionFault::kNotGrpc},
    Sign{"handshake failed", ConnectionFault::kClosed},
    Sign{"Connection refused", ConnectionFault::kRefused},
    Sign{"No such file or directory", ConnectionFault::kRefused},
    Sign{"No route to host", ConnectionFault::kUnreachable},
    Sign{"etwork is unreachable", ConnectionFault::kUnreachable},
    Sign{"onnection timed out", ConnectionFault::kUnreachable},
    Sign{"connect() timed out", ConnectionFault::kUnreachable},
    Sign{"eadline", ConnectionFault::kSilent},
    Sign{"handshake timeout", ConnectionFault::kSilent},
    Sign{"before receiving SETTINGS", ConnectionFault::kSilent},
    Sign{"andshake timed out", ConnectionFault::kSilent},
};

// gRPC says this of what happened before a connection was made.
constexpr char kWhileConnecting[] = "failed to connect to all addresses";

ConnectionFault Classify(absl::string_view message) {
  for (const Sign& sign : kSigns) {
    if (absl::StrContains(message, sign.text)) return sign.fault;
  }
  const bool closed = absl::StrContains(message, "Socket closed") ||
                      absl::StrContains(message, "onnection reset") ||
                      absl::StrContains(message, "Broken pipe") ||
                      absl::StrContains(message, "GOAWAY");
  if (absl::StrContains(message, kWhileConnecting)) {
    return closed ? ConnectionFault::kClosed : ConnectionFault::kUnreachable;
  }
  return closed ? ConnectionFault::kLost : ConnectionFault::kNone;
}

std::string Words(ConnectionFault fault, const std::string& address) {
  switch (fault) {
    case ConnectionFault::kHost:
      return absl::StrCat("no host is named ",
                          address.substr(0, address.rfind(':')));
    case ConnectionFault::kRefused:
      return absl::StrCat("no server answers at ", address,
                          ": the connection is refused");
    case ConnectionFault::kUnreachable:
      return absl::StrCat(address, " cannot be reached");
    case ConnectionFault::kSilent:
      return absl::StrCat(address, " takes the connection and does not answer");
    case ConnectionFault::kNotGrpc:
      return absl::StrCat("what listens at ", address, " is no gRPC server");
    case ConnectionFault::kClosed:
      return absl::StrCat(address, " closes the connection at once");
    case ConnectionFault::kNoTls:
      return absl::StrCat("the server at ", address, " does not speak TLS");
    case ConnectionFault::kCertificate:
      return absl::StrCat("the certificate of ", address,
                          " is not signed by an authority that is trusted");
    case ConnectionFault::kServerName:
      return absl::StrCat("the certificate of ", address,
                          " names another host");
    case ConnectionFault::kLost:
      return absl::StrCat("the connection to ", address, " was lost");
    case ConnectionFault::kNone:
      break;
  }
  return "";
}

}  // namespace

absl::Status ExplainConnection(const absl::Status& status,
                               const std::string& address) {
  if (!absl::IsUnavailable(status)) return status;
  const ConnectionFault fault = Classify(status.message());
  if (fault == ConnectionFault::kNone) return status;
  absl::Status out = absl::UnavailableError(Words(fault, address));
  status.ForEachPayload(
      [&](absl::string_view type_url, const absl::Cord& payload) {
        out.SetPayload(type_url, payload);
      });
  out.SetPayload(kFaultPayload,
                 absl::Cord(absl::StrCat(static_cast<int>(fault))));
  return out;
}

ConnectionFault FaultOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kFaultPayload);
  int fault = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &fault)) {
    return ConnectionFault::kNone;
  }
  return static_cast<ConnectionFault>(fault);
}

absl::Status CheckServerAddress(const std::string& address) {
  if (address.empty()) {
    return absl::InvalidArgumentError("the server's address is empty");
  }
  for (const char* scheme :
       {"unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:"}) {
    // "dns:50051" is a host of that name.
    if (absl::StartsWith(address, scheme) &&
        address.find_first_of("/:", std::string(scheme).size()) !=
            std::string::npos) {
      return absl::OkStatus();
    }
  }
  const std::string takes = absl::StrCat("\"", address, "\" is no address: ");
  if (const size_t scheme = address.find("://"); scheme != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(takes, "leave out ", address.substr(0, scheme + 3),
                     ", it is host:port"));
  }
  const size_t colon = address.rfind(':');
  const bool bare_ipv6 =
      !absl::StartsWith(address, "[") && address.find(':') != colon;
  int port = 0;
  if (colon == std::string::npos || colon == 0 || bare_ipv6) {
    return absl::InvalidArgumentError(
        absl::StrCat(takes, "it takes host:port, an IPv6 host in brackets"));
  }
  if (address.find_first_not_of("0123456789", colon + 1) != std::string::npos ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(takes, "its port is a number from 1 to 65535"));
  }
  return absl::OkStatus();
}

}  // namespace xcache::client
