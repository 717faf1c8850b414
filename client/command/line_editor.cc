#include "client/command/line_editor.h"

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cwchar>
#include <filesystem>
#include <iostream>
#include <string_view>
#include <system_error>

#include "client/command/terminal.h"

namespace xcache::command {
namespace {

constexpr int kHistoryLines = 1000;

// Bracketed paste (xterm's control sequences): the terminal marks what is
// pasted, so that its line ends do not send a message each. On for as long as
// the editor lives: what is pasted while an answer is written is marked, too.
constexpr char kMarkPastes[] = "\x1b[?2004h";
constexpr char kMarkNoPastes[] = "\x1b[?2004l";
constexpr char kPasteBegins[] = "\\e[200~";  // as el_set(EL_BIND) writes it
constexpr std::wstring_view kPasteEnds = L"\x1b[201~";

// libedit retries its own read() after a signal, so Ctrl-C would go unseen.
int ReadCharacter(EditLine*, wchar_t* out) {
  mbstate_t state{};
  while (Interrupts::WaitForInput()) {
    char byte;
    const ssize_t n = read(STDIN_FILENO, &byte, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return static_cast<int>(n);
    // A Ctrl-D typed while an answer was written: the terminal, not yet in the
    // editor's mode, has put a zero byte for it.
    if (byte == '\0') byte = '\x04';
    const size_t got = std::mbrtowc(out, &byte, 1, &state);
    if (got == static_cast<size_t>(-2)) continue;  // more bytes follow
    if (got == static_cast<size_t>(-1)) {
      state = {};
      *out = L'\uFFFD';
    }
    return 1;
  }
  return -1;
}

class Edited final : public LineEditor {
 public:
  explicit Edited(std::string history_file)
      : history_file_(std::move(history_file)) {
    std::setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryLines);
    history(history_, &event, H_SETUNIQUE, 1);
    if (!history_file_.empty()) {
      history(history_, &event, H_LOAD, history_file_.c_str());
    }
    el_ = el_init("xcache", stdin, stdout, stderr);
    el_set(el_, EL_EDITOR, "emacs");
    el_set(el_, EL_SIGNAL, 0);
    el_set(el_, EL_CLIENTDATA, this);
    // '\1' brackets what takes no columns.
    el_set(el_, EL_PROMPT_ESC, &Edited::Prompt, '\1');
    el_set(el_, EL_HIST, history, history_);
    el_set(el_, EL_GETCFN, &ReadCharacter);
    el_set(el_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    // Of el_set()'s copies of the names libedit keeps none to free.
    el_wset(el_, EL_ADDFN, L"xcache-paste", L"Insert what is pasted as it is",
            &Edited::Paste);
    el_set(el_, EL_BIND, kPasteBegins, "xcache-paste", nullptr);
    if (marks_pastes_) std::cout << kMarkPastes << std::flush;
  }

  ~Edited() override {
    if (marks_pastes_) std::cout << kMarkNoPastes << std::flush;
    el_end(el_);
    if (!history_file_.empty()) {
      const mode_t mask = umask(077);
      HistEvent event;
      history(history_, &event, H_SAVE, history_file_.c_str());
      umask(mask);
    }
    history_end(history_);
  }

  Result Read(const std::string& prompt, std::string* line) override {
    prompt_ = prompt;
    int count = 0;
    const char* text = el_gets(el_, &count);
    if (Interrupts::Pending()) {
      el_reset(el_);
      std::cout << std::endl;
      return Result::kInterrupted;
    }
    if (text == nullptr || count <= 0) return Result::kEnd;
    line->assign(text, static_cast<size_t>(count));
    while (!line->empty() && (line->back() == '\n' || line->back() == '\r')) {
      line->pop_back();
    }
    if (line->find_first_not_of(" \t") != std::string::npos) {
      HistEvent event;
      history(history_, &event, H_ENTER, line->c_str());
    }
    return Result::kLine;
  }

  bool interactive() const override { return true; }

 private:
  static char* Prompt(EditLine* el) {
    Edited* self = nullptr;
    el_get(el, EL_CLIENTDATA, &self);
    return self->prompt_.data();
  }

  // Everything up to the end mark goes into the line, line ends included: the
  // terminal driver makes \n of the \r that terminals send for them.
  static unsigned char Paste(EditLine* el, wint_t) {
    std::wstring lines;
    wchar_t c = 0;
    while (!lines.ends_with(kPasteEnds)) {
      if (ReadCharacter(el, &c) != 1) return CC_EOF;
      lines.push_back(c);
    }
    lines.resize(lines.size() - kPasteEnds.size());
    std::erase(lines, L'\0');
    // An end of line at the end would only put the cursor on an empty line.
    while (lines.ends_with(L'\n')) lines.pop_back();
    return lines.empty() || el_winsertstr(el, lines.c_str()) == 0 ? CC_REFRESH
                                                                  : CC_ERROR;
  }

  const std::string history_file_;
  const bool marks_pastes_ = !IsDumbTerminal();
  std::string prompt_;
  EditLine* el_ = nullptr;
  History* history_ = nullptr;
};

class Plain final : public LineEditor {
 public:
  Result Read(const std::string&, std::string* line) override {
    while (true) {
      if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
        *line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        if (!line->empty() && line->back() == '\r') line->pop_back();
        return Result::kLine;
      }
      if (!Interrupts::WaitForInput()) return Result::kInterrupted;
      std::array<char, 4096> bytes;
      const ssize_t n = read(STDIN_FILENO, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n > 0) {
        buffer_.append(bytes.data(), static_cast<size_t>(n));
        continue;
      }
      if (buffer_.empty()) return Result::kEnd;
      buffer_.push_back('\n');  // the last line had no end of its own
    }
  }
  bool interactive() const override { return false; }

 private:
  std::string buffer_;
};

}  // namespace

std::unique_ptr<LineEditor> LineEditor::Create(
    const std::string& history_file) {
  if (IsTerminal(STDIN_FILENO) && IsTerminal(STDOUT_FILENO)) {
    return std::make_unique<Edited>(history_file);
  }
  return std::make_unique<Plain>();
}

std::string DefaultHistoryFile() {
  std::filesystem::path folder;
  if (const char* xdg = std::getenv("XDG_STATE_HOME");
      xdg != nullptr && *xdg == '/') {
    folder = xdg;
  } else if (const char* home = std::getenv("HOME");
             home != nullptr && *home == '/') {
    folder = std::filesystem::path(home) / ".local/state";
  } else {
    return "";
  }
  folder /= "xcache";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : (folder / "history").string();
}

}  // namespace xcache::command
