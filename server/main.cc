// xcache-server: the command line, the signals and the exit code. What it
// serves is server_app.h's.
//
// SIGTERM, SIGINT  stop taking requests, finish what runs, exit 0; a second one
//                  does not wait
// SIGHUP           read the token and TLS files again
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json_log.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "server/allocator.h"
#include "server/config.h"
#include "server/frontend/unique_fd.h"
#include "server/grpc/rpc_server.h"
#include "server/server_app.h"
#include "server/start_check.h"

namespace xcache {
namespace {

constexpr int kUsageError = 2;
constexpr int kStartError = 1;

// The last line says why, in the log's form where that is known by then.
int Fail(const absl::Status& status, int code, std::string_view log_format) {
  const std::string why(status.message());
  const std::string line =
      log_format == "json"
          ? JsonLogLine(LogTimeNow(), "critical",
                        absl::StrCat("not started error=", LogValue(why)))
          : absl::StrCat("xcache-server: ", why);
  std::fprintf(stderr, "%s\n", line.c_str());
  return code;
}

// --check-config: what would be used on stdout, what is wrong on stderr.
int Report(const CommandLine& command_line) {
  size_t width = 0;
  for (const Setting& setting : command_line.settings) {
    width = std::max(width, setting.flag.size());
  }
  for (const auto& [flag, value, source] : command_line.settings) {
    std::printf("%-*s %-8s %s\n", static_cast<int>(width), flag.c_str(),
                source.c_str(), value.empty() ? "-" : value.c_str());
  }
  StartCheck check;
  // Without settings there is nothing more to look at.
  if (!command_line.settings.empty()) check = CheckStart(command_line.config);
  for (const std::string& note : check.notes) {
    std::printf("%s\n", note.c_str());
  }
  std::fflush(stdout);
  const auto tell = [](const char* what,
                       const std::vector<std::string>& lines) {
    for (const std::string& line : lines) {
      std::fprintf(stderr, "xcache-server: %s: %s\n", what, line.c_str());
    }
    return lines.size();
  };
  tell("warning", command_line.warnings);
  tell("warning", check.warnings);
  const size_t num_faults =
      tell("fault", command_line.faults) + tell("fault", check.faults);
  if (num_faults == 0) {
    std::printf("no fault found\n");
    return 0;
  }
  std::fprintf(stderr, "xcache-server: %zu fault%s\n", num_faults,
               num_faults == 1 ? "" : "s");
  return kStartError;
}

// Tells whoever waits for the server where it listens. Written whole or not at
// all, so that nobody reads half. One that a killed server left behind is taken
// away first thing; until then a reader can tell: the file is locked (flock)
// for as long as its server lives.
class ReadyFile {
 public:
  explicit ReadyFile(std::string path) : path_(std::move(path)) {}
  ~ReadyFile() { (void)Remove(); }

  absl::Status Remove() {
    if (path_.empty() || std::remove(path_.c_str()) == 0 || errno == ENOENT) {
      return absl::OkStatus();
    }
    return Failed("remove");
  }

  absl::Status Write(const ServerApp& app) {
    if (path_.empty()) return absl::OkStatus();
    const std::string text = nlohmann::json{{"listen", app.address()},
                                            {"metrics", app.metrics_address()},
                                            {"http", app.http_address()},
                                            {"pid", getpid()}}
                                 .dump() +
                             "\n";
    const std::string temporary = absl::StrCat(path_, ".", getpid());
    file_ = UniqueFd(open(temporary.c_str(),
                          O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (file_.get() < 0 || flock(file_.get(), LOCK_EX | LOCK_NB) != 0 ||
        write(file_.get(), text.data(), text.size()) !=
            static_cast<ssize_t>(text.size()) ||
        std::rename(temporary.c_str(), path_.c_str()) != 0) {
      return Failed("write");
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Failed(const char* deed) const {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot ", deed, " ", path_,
                     " (--ready-file): ", std::strerror(errno)));
  }

  const std::string path_;
  UniqueFd file_;
};

// Loads on a thread of its own, so that the signals are heard meanwhile.
class Loader {
 public:
  // Sends SIGUSR1 to the calling thread when it is through.
  Loader(ServerApp& app, ReadyFile& ready_file)
      : thread_([&app, &ready_file, this, waiter = pthread_self()] {
          status_ = app.Load();
          if (status_.ok()) status_ = ready_file.Write(app);
          done_ = true;
          pthread_kill(waiter, SIGUSR1);
        }) {}
  ~Loader() { thread_.join(); }

  bool done() const { return done_; }
  // REQUIRES: done().
  const absl::Status& status() const { return status_; }

 private:
  std::atomic<bool> done_{false};
  absl::Status status_;
  std::thread thread_;
};

int Serve(const Config& config, const sigset_t& signals) {
  ReadyFile ready_file(config.ready_file);
  if (absl::Status status = ready_file.Remove(); !status.ok()) {
    return Fail(status, kStartError, config.log_format);
  }
  auto app = ServerApp::Listen(config);
  if (!app.ok()) return Fail(app.status(), kStartError, config.log_format);
  Loader loader(**app, ready_file);
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (signal == SIGUSR1) {
      if (!loader.done() || loader.status().ok()) continue;
      (*app)->Stop(std::chrono::seconds(0));
      return Fail(loader.status(), kStartError, config.log_format);
    }
    if (signal == SIGHUP) {
      (*app)->ReloadCredentials();
      continue;
    }
    break;
  }
  (void)ready_file.Remove();
  if (!loader.done()) {
    // Loading cannot be interrupted, and nothing of it needs an orderly end:
    // the store survives any, and profiles are renamed into place.
    XC_LOG_INFO("stopped while loading");
    spdlog::shutdown();
    _exit(0);
  }
  XC_LOG_INFO("draining", "seconds={}", config.drain.count());
  std::thread impatience([&signals] {
    int signal = 0;
    do {
      sigwait(&signals, &signal);
    } while (signal != SIGTERM && signal != SIGINT && signal != SIGUSR1);
    // SIGUSR1: the orderly end was quicker.
    if (signal != SIGUSR1) {
      XC_LOG_WARN("stopped without draining");
      spdlog::shutdown();
      _exit(kStartError);
    }
  });
  const int cut_short = (*app)->Stop(config.drain);
  pthread_kill(impatience.native_handle(), SIGUSR1);
  impatience.join();
  XC_LOG_INFO("stopped", "turns_cut_short={}", cut_short);
  return 0;
}

int Main(int argc, char** argv) {
  BoundAllocator();
  // Every thread inherits this mask: signals are taken by sigwait alone.
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) {
    sigaddset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const auto command_line = ParseCommandLine(argc, argv);
  if (!command_line.ok()) {
    return Fail(command_line.status(), kUsageError, "text");
  }
  if (!command_line->print_and_exit.empty()) {
    std::fputs(command_line->print_and_exit.c_str(), stdout);
    return 0;
  }
  InitLogging(command_line->config.log_level);
  if (command_line->check) return Report(*command_line);
  if (command_line->config.log_format == "json") LogAsJson();
  QuietLibraryLogging();
  for (const std::string& warning : command_line->warnings) {
    XC_LOG_WARN("environment variable ignored", "reason={}", LogValue(warning));
  }
  return Serve(command_line->config, signals);
}

}  // namespace
}  // namespace xcache

int main(int argc, char** argv) { return xcache::Main(argc, argv); }
