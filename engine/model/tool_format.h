// Tools as models of chat see them: what a prompt says of them, how calls and
// results are written, and calls read out of an answer as it comes. One form
// for all families, that of Hermes, which Qwen's templates have word for word:
// names and arguments as JSON between <tool_call> and </tool_call>.
#ifndef XCACHE_ENGINE_MODEL_TOOL_FORMAT_H_
#define XCACHE_ENGINE_MODEL_TOOL_FORMAT_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace xcache {

inline constexpr size_t kMaxToolNameBytes = 64;  // OpenAI's

struct ToolDef {
  std::string name;
  std::string text;    // {"type": "function", "function": {...}}, as JSON
  std::string schema;  // of its arguments, as JSON
};

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON; empty: an object of nothing
};

// JSON as prompts have it: spaced as Python's json.dumps does, which templates
// are written with, whatever white space it had.
std::string SpacedJson(std::string_view text);

// What a system prompt ends with, where there are tools; a prompt of its own
// where there is none.
std::string WithTools(std::string_view system_prompt,
                      std::span<const ToolDef> tools);
// The same without its tools.
std::string_view WithoutTools(std::string_view system_prompt);
// An assistant's message, as it wrote it.
std::string WithCalls(std::string_view content,
                      std::span<const ToolCall> calls);
// A user's message that has the results of some calls, in order.
std::string ResultsText(std::span<const std::string> results);
// These again; nothing: it is another message.
std::vector<std::string> ReadResults(std::string_view text);

// What stands around a call's arguments, and between two calls.
std::string CallBegin(std::string_view name);
inline constexpr std::string_view kCallEnd = "}\n</tool_call>";
inline constexpr std::string_view kCallTrigger = "<tool_call>";
inline constexpr std::string_view kCallSeparator = "\n";

// An answer's text apart from the calls in it. What is no call, or only begins
// one, is text; white space before a call is neither.
class ToolCallReader {
 public:
  struct Part {
    enum class Kind { kText, kCall, kArguments };
    Kind kind = Kind::kText;
    // Text; the name of the call that begins; or more of its arguments.
    std::string text;
  };

  // What is known by the next text of the answer.
  std::vector<Part> Add(std::string_view text);
  // The same, at its end.
  std::vector<Part> Finish();
  size_t num_calls() const { return num_calls_; }

 private:
  enum class State { kText, kHead, kArguments, kTail };

  // Each reads what it can of `held_`; false: it needs more.
  bool ReadText(bool at_end, std::vector<Part>* out);
  bool ReadHead(bool at_end, std::vector<Part>* out);
  bool ReadArguments(std::vector<Part>* out);
  bool ReadTail(bool at_end);
  std::vector<Part> Read(bool at_end);
  void Say(std::string_view text, std::vector<Part>* out);

  State state_ = State::kText;
  std::string held_;    // not read yet
  std::string spaces_;  // white space that may come before a call
  size_t num_calls_ = 0;
  // Of the arguments.
  int depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_TOOL_FORMAT_H_
