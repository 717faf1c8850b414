// Reads the lines that a person types: with editing and history on a terminal,
// plainly from anything else.
#ifndef XCACHE_CLIENT_COMMAND_LINE_EDITOR_H_
#define XCACHE_CLIENT_COMMAND_LINE_EDITOR_H_

#include <memory>
#include <string>

namespace xcache::command {

class LineEditor {
 public:
  enum class Result { kLine, kEnd, kInterrupted };

  // `history_file` is read now and written at the end (mode 0600); empty: none.
  static std::unique_ptr<LineEditor> Create(const std::string& history_file);
  virtual ~LineEditor() = default;

  // One line without its end. `prompt` is shown on a terminal only.
  virtual Result Read(const std::string& prompt, std::string* line) = 0;
  virtual bool interactive() const = 0;
};

// $XDG_STATE_HOME/xcache/history or ~/.local/state/xcache/history, its folder
// made; empty where there is no home.
std::string DefaultHistoryFile();

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_LINE_EDITOR_H_
