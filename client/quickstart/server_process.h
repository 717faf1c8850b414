// An xcache-server of one's own: started, waited for, killed. Linux only.
#ifndef XCACHE_CLIENT_QUICKSTART_SERVER_PROCESS_H_
#define XCACHE_CLIENT_QUICKSTART_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace xcache::quickstart {

class ServerProcess {
 public:
  struct Options {
    std::string program;
    std::vector<std::string> arguments;  // without --listen and --ready-file
    std::string ready_file;
    std::string log_file;  // its stdout and stderr, appended
  };

  // Returns once it serves, however long it takes. Where it ends before: its
  // last line. It is killed with this object, and with this process.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const Options& options);
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  const std::string& address() const { return address_; }
  pid_t pid() const { return pid_; }
  // From the start of the process until it served.
  absl::Duration start_time() const { return start_time_; }

  // kill -9, and waits until the process is gone.
  void Kill();
  // SIGTERM, and waits. Not OK where it does not exit with 0.
  absl::Status Stop();

 private:
  explicit ServerProcess(Options options) : options_(std::move(options)) {}
  absl::Status WaitReady();
  std::string LastLogLine() const;

  const Options options_;
  pid_t pid_ = -1;
  std::string address_;
  absl::Duration start_time_;
};

}  // namespace xcache::quickstart

#endif  // XCACHE_CLIENT_QUICKSTART_SERVER_PROCESS_H_
