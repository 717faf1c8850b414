// An answer of a chat, as it is written, apart: what was thought before it
// (engine/model/think_reader.h), its text, and its calls of tools
// (engine/model/tool_format.h).
#ifndef XCACHE_SERVER_FRONTEND_ANSWER_READER_H_
#define XCACHE_SERVER_FRONTEND_ANSWER_READER_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/think_reader.h"
#include "engine/model/tool_format.h"

namespace xcache {

struct AnswerPart {
  enum class Kind { kThought, kText, kCall, kArguments };
  Kind kind = Kind::kText;
  // More of a thought, of the text or of a call's arguments (JSON, in parts as
  // they come); or the name of the call that begins.
  std::string text;
  size_t call = 0;  // which: 0 is the first
  std::string id;   // of kCall: "call_" and random digits
};

class AnswerReader {
 public:
  // `with_calls` false: what looks like a call is text.
  explicit AnswerReader(bool with_calls) {
    if (with_calls) calls_.emplace();
  }

  // What is known by the next text of the answer.
  std::vector<AnswerPart> Add(std::string_view text) {
    return Read(text, /*at_end=*/false);
  }
  // The same, at its end.
  std::vector<AnswerPart> Finish() { return Read("", /*at_end=*/true); }
  size_t num_calls() const { return calls_ ? calls_->num_calls() : 0; }

 private:
  std::vector<AnswerPart> Read(std::string_view text, bool at_end);

  ThinkReader thoughts_;
  std::optional<ToolCallReader> calls_;
};

// The prefix and 96 random bits, in hexadecimal digits.
std::string RandomId(std::string_view prefix);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_ANSWER_READER_H_
