// What `xcache` exits with. `xcache --help` lists the same numbers.
#ifndef XCACHE_CLIENT_COMMAND_EXIT_CODE_H_
#define XCACHE_CLIENT_COMMAND_EXIT_CODE_H_

#include "absl/status/status.h"

namespace xcache::command {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,        // anything not named below
  kExitUsage = 2,         // a bad command line, or INVALID_ARGUMENT
  kExitUnreachable = 3,   // no server, or not ready in time: UNAVAILABLE,
                          // DEADLINE_EXCEEDED
  kExitNotFound = 4,      // NOT_FOUND
  kExitDenied = 5,        // UNAUTHENTICATED, PERMISSION_DENIED
  kExitBusy = 6,          // RESOURCE_EXHAUSTED, ABORTED: try again later
  kExitExists = 7,        // ALREADY_EXISTS
  kExitDataLoss = 8,      // DATA_LOSS: the session's record is damaged
  kExitInterrupted = 130  // Ctrl-C, as shells say it
};

int ExitCodeOf(const absl::Status& status);

// "error: ..." on one line, with a hint where one is known.
std::string ErrorLine(const absl::Status& status);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_EXIT_CODE_H_
