// Reads one message of a person or a script: a line, lines that end with \, or
// a block between """ and """.
#ifndef XCACHE_CLIENT_COMMAND_MESSAGE_READER_H_
#define XCACHE_CLIENT_COMMAND_MESSAGE_READER_H_

#include <string>

#include "client/command/line_editor.h"

namespace xcache::command {

struct TypedMessage {
  std::string text;
  // One line as it was typed: only such a one may be a command.
  bool plain = true;
};

// `first` and `next` are the prompts of the first line and of the ones that
// belong to it. A message that the input's end cuts off is what there is of it.
LineEditor::Result ReadMessage(LineEditor& editor, const std::string& first,
                               const std::string& next, TypedMessage* out);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_MESSAGE_READER_H_
