#include "client/command/exit_code.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "client/command/text.h"
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

std::string ErrorLine(const absl::Status& status) {
  std::string line = absl::StrCat("error: ", OneLine(status.message()));
  if (const auto after = client::RetryAfter(status)) {
    absl::StrAppend(&line, " (try again in ", absl::FormatDuration(*after),
                    ")");
  } else if (absl::IsUnauthenticated(status)) {
    absl::StrAppend(&line, " (give --token, or set XCACHE_TOKEN)");
  } else if (absl::IsUnavailable(status)) {
    absl::StrAppend(&line, " (is xcache-server running?)");
  }
  return line;
}

}  // namespace xcache::command
