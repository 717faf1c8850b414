// The terminal: whether there is one, colour, the spinner, Ctrl-C.
#ifndef XCACHE_CLIENT_COMMAND_TERMINAL_H_
#define XCACHE_CLIENT_COMMAND_TERMINAL_H_

#include <optional>
#include <string>
#include <string_view>

#include "client/xcache_client.h"

namespace xcache::command {

// Escape sequences, or empty strings where colour is not wanted: the stream is
// no terminal, NO_COLOR is set and not empty, or TERM is "dumb".
struct Style {
  static Style For(int fd);
  std::string_view dim, bold, green, red, reset;
};

bool IsTerminal(int fd);
bool IsDumbTerminal();  // TERM says that it takes no escape sequences
struct TerminalSize {
  int rows = 24;
  int columns = 80;
};
TerminalSize SizeOf(int fd);  // 24 rows of 80 where it is not known

// Writes to stdout and flushes it; false where that fails.
bool Write(std::string_view text);
// Why not all of stdout could be written until now; 0 where it could.
int OutputError();

// What a shell pipes or redirects into this process; empty where stdin is
// something else, which may never end (a terminal, the socket of a parent).
// None where Ctrl-C came first.
std::optional<std::string> ReadPipedInput();
// The rest of stdin, whatever it is. None where Ctrl-C came first.
std::optional<std::string> ReadStdin();

// One line on stderr that is rewritten; on no terminal only its first text is
// shown, once. The destructor clears it.
class Spinner {
 public:
  Spinner();
  ~Spinner();
  Spinner(const Spinner&) = delete;
  Spinner& operator=(const Spinner&) = delete;
  void Show(const std::string& text);
  void Clear();

 private:
  const bool terminal_;
  bool shown_ = false;
  int frame_ = 0;
};

// SIGINT of this process. From Install() on it no longer ends the process: it
// cancels the call in the current Scope, or is left for Take() to see. There is
// one such thing in a process, because there is one SIGINT.
class Interrupts {
 public:
  static void Install();
  // Whether one came since the last Take().
  static bool Take();
  static bool Pending();
  // Becomes readable when one comes; for poll(). Cleared by Take().
  static int fd();
  // Waits until stdin has something; false where one came first.
  static bool WaitForInput();

  class Scope {
   public:
    explicit Scope(client::CancelHandle* cancel);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
  };
};

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_TERMINAL_H_
