#include "client/command/terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

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
    if (g_scope != nullptr) g_scope->Cancel();
  }
}

}  // namespace

bool IsTerminal(int fd) { return isatty(fd) == 1; }

int TerminalColumns(int fd) {
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

Style Style::For(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  if (!IsTerminal(fd) || (no_color != nullptr && *no_color != '\0') ||
      (term != nullptr && std::string_view(term) == "dumb")) {
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
  std::fprintf(stderr, "\r%c %s\x1b[K", frame, text.c_str());
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
