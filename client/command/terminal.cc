#include "client/command/terminal.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "client/command/text.h"

namespace xcache::command {
namespace {

// What the signal handler can reach. Two pipes: one wakes the thread that
// cancels calls, one stays readable until somebody took the interrupt.
std::atomic<bool> g_pending = false;
std::array<int, 2> g_wake = {-1, -1};
std::array<int, 2> g_level = {-1, -1};
std::mutex g_scope_mutex;
client::CancelHandle* g_scope = nullptr;

int g_output_error = 0;  // the first errno of stdout

void OnInterrupt(int) {
  const int saved = errno;
  g_pending = true;
  const char byte = 1;
  // A full pipe has woken everybody already.
  [[maybe_unused]] ssize_t n = write(g_wake[1], &byte, 1);
  n = write(g_level[1], &byte, 1);
  errno = saved;
}

void CancelLoop() {
  char byte;
  while (true) {
    const ssize_t n = read(g_wake[0], &byte, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    std::lock_guard<std::mutex> lock(g_scope_mutex);
    // This thread may be late: what was taken meanwhile was for the prompt, and
    // not for the call that came after it.
    if (g_scope != nullptr && g_pending) g_scope->Cancel();
  }
}

}  // namespace

bool IsTerminal(int fd) { return isatty(fd) == 1; }

bool IsDumbTerminal() {
  const char* term = std::getenv("TERM");
  return term != nullptr && std::string_view(term) == "dumb";
}

TerminalSize SizeOf(int fd) {
  winsize size{};
  TerminalSize out;
  if (ioctl(fd, TIOCGWINSZ, &size) != 0) return out;
  if (size.ws_col > 0) out.columns = size.ws_col;
  if (size.ws_row > 0) out.rows = size.ws_row;
  return out;
}

bool Write(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
      std::fflush(stdout) == 0) {
    return true;
  }
  if (g_output_error == 0) g_output_error = errno != 0 ? errno : EIO;
  return false;
}

int OutputError() {
  Write("");
  if (g_output_error == 0 && std::ferror(stdout) != 0) g_output_error = EIO;
  return g_output_error;
}

std::optional<std::string> ReadStdin() {
  std::string out;
  std::array<char, 65536> bytes;
  while (true) {
    if (!Interrupts::WaitForInput()) return std::nullopt;
    const ssize_t n = read(STDIN_FILENO, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return out;
    out.append(bytes.data(), static_cast<size_t>(n));
  }
}

std::optional<std::string> ReadPipedInput() {
  struct stat info {};
  if (fstat(STDIN_FILENO, &info) != 0 ||
      !(S_ISFIFO(info.st_mode) || S_ISREG(info.st_mode))) {
    return "";
  }
  return ReadStdin();
}

Style Style::For(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  if (!IsTerminal(fd) || (no_color != nullptr && *no_color != '\0') ||
      IsDumbTerminal()) {
    return {};
  }
  return {.dim = "\x1b[2m",
          .bold = "\x1b[1m",
          .green = "\x1b[32m",
          .red = "\x1b[31m",
          .reset = "\x1b[0m"};
}

Spinner::Spinner() : terminal_(IsTerminal(STDERR_FILENO)) {}
Spinner::~Spinner() { Clear(); }

void Spinner::Show(const std::string& text) {
  if (!terminal_) {
    if (!shown_) std::fprintf(stderr, "%s\n", text.c_str());
    shown_ = true;
    return;
  }
  static constexpr std::string_view kFrames = "|/-\\";
  const char frame = kFrames[static_cast<size_t>(frame_++) % kFrames.size()];
  // A line that wraps could not be rewritten.
  const size_t room =
      static_cast<size_t>(std::max(SizeOf(STDERR_FILENO).columns - 3, 1));
  std::fprintf(stderr, "\r%c %s\x1b[K", frame, Cut(text, room).c_str());
  std::fflush(stderr);
  shown_ = true;
}

void Spinner::Clear() {
  if (shown_ && terminal_) {
    std::fprintf(stderr, "\r\x1b[K");
    std::fflush(stderr);
  }
  shown_ = false;
}

void Interrupts::Install() {
  if (g_wake[0] >= 0) return;
  if (pipe2(g_wake.data(), O_CLOEXEC) != 0 ||
      pipe2(g_level.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
    return;  // no pipes left: SIGINT ends the process, as it does by default
  }
  fcntl(g_wake[1], F_SETFL, O_NONBLOCK);
  std::thread(CancelLoop).detach();
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  // stdio takes a write that is interrupted for one that failed. Waits are by
  // poll(), which ends all the same.
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
}

bool Interrupts::Pending() { return g_pending; }

bool Interrupts::Take() {
  std::array<char, 64> sink;
  while (g_level[0] >= 0 && read(g_level[0], sink.data(), sink.size()) > 0) {
  }
  return g_pending.exchange(false);
}

int Interrupts::fd() { return g_level[0]; }

bool Interrupts::WaitForInput() {
  while (true) {
    if (Pending()) return false;
    std::array<pollfd, 2> fds = {
        {{STDIN_FILENO, POLLIN, 0}, {fd(), POLLIN, 0}}};
    const int n = poll(fds.data(), fds.size(), -1);
    if (n < 0 && errno != EINTR) return true;  // let the read say what is wrong
    if (n > 0 && fds[0].revents != 0) return !Pending();
  }
}

Interrupts::Scope::Scope(client::CancelHandle* cancel) {
  std::lock_guard<std::mutex> lock(g_scope_mutex);
  g_scope = cancel;
  // One that came just before counts, too.
  if (g_pending) cancel->Cancel();
}

Interrupts::Scope::~Scope() {
  std::lock_guard<std::mutex> lock(g_scope_mutex);
  g_scope = nullptr;
}

}  // namespace xcache::command
