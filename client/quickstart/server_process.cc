#include "client/quickstart/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace xcache::quickstart {

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const Options& options) {
  auto server = std::unique_ptr<ServerProcess>(new ServerProcess(options));
  std::vector<std::string> words = {options.program};
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  for (const char* word : {"--listen", "127.0.0.1:0", "--metrics-listen",
                           "127.0.0.1:0", "--ready-file"}) {
    words.emplace_back(word);
  }
  words.push_back(options.ready_file);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  std::remove(options.ready_file.c_str());
  const absl::Time start = absl::Now();
  const pid_t parent = getpid();
  server->pid_ = fork();
  if (server->pid_ < 0) {
    return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  }
  if (server->pid_ == 0) {
    // Between fork and exec only what is safe after a signal.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    const int in = open("/dev/null", O_RDONLY);
    const int log =
        open(options.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (in < 0 || log < 0) _exit(127);
    dup2(in, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  XC_RETURN_IF_ERROR(server->WaitReady());
  server->start_time_ = absl::Now() - start;
  return server;
}

ServerProcess::~ServerProcess() { Kill(); }

absl::Status ServerProcess::WaitReady() {
  while (true) {
    std::ifstream in(options_.ready_file);
    if (in) {
      const auto ready = nlohmann::json::parse(in, nullptr, false);
      if (ready.is_object() && ready.contains("listen") &&
          ready["listen"].is_string()) {
        address_ = ready["listen"];
        return absl::OkStatus();
      }
      return absl::InternalError(
          absl::StrCat(options_.ready_file, " does not name an address"));
    }
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return absl::UnavailableError(
          absl::StrCat(options_.program, " did not start: ", LastLogLine()));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
}

std::string ServerProcess::LastLogLine() const {
  std::ifstream in(options_.log_file);
  std::string line;
  std::string last = "(its log is empty)";
  while (std::getline(in, line)) {
    if (!line.empty()) last = line;
  }
  return last;
}

void ServerProcess::Kill() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

absl::Status ServerProcess::Stop() {
  if (pid_ < 0) return absl::OkStatus();
  kill(pid_, SIGTERM);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(options_.program,
                                          " ended with wait status ", status,
                                          " on SIGTERM: ", LastLogLine()));
}

}  // namespace xcache::quickstart
