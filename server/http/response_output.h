// What an answer's text is as a response's output: items of text and calls, in
// the order in which they were written.
//
// The first item of text is "msg_" and the name of the answer; another, and
// each call, has its place in the output behind that.
#ifndef XCACHE_SERVER_HTTP_RESPONSE_OUTPUT_H_
#define XCACHE_SERVER_HTTP_RESPONSE_OUTPUT_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/tool_format.h"
#include "nlohmann/json.hpp"

namespace xcache {

struct OutputItem {
  bool is_call = false;
  std::string name;  // of what is called
  std::string text;  // or a call's arguments
};

class OutputReader {
 public:
  // `with_calls` false: all of it is text.
  explicit OutputReader(bool with_calls) : with_calls_(with_calls) {}

  // More of an item, which it may begin.
  struct Part {
    size_t index = 0;
    bool begins = false;
    std::string text;
  };
  // What is known by the next text of the answer.
  std::vector<Part> Add(std::string_view text);
  // The same, at its end. An answer that says nothing is an item of no text.
  std::vector<Part> Finish();

  const std::vector<OutputItem>& items() const { return items_; }

 private:
  std::vector<Part> Take(const std::vector<ToolCallReader::Part>& parts);

  bool with_calls_;
  ToolCallReader calls_;
  std::vector<OutputItem> items_;
};

// All of an answer.
std::vector<OutputItem> ReadOutput(std::string_view text, bool with_calls);

// The ids of the `index`-th item of the answer `name`.
std::string ItemId(const OutputItem& item, std::string_view name, size_t index);
std::string CallId(std::string_view name, size_t index);

nlohmann::json TextPart(std::string_view text, nlohmann::json logprobs);
// {"type": "message", ...} or {"type": "function_call", ...}. `status`:
// "completed", ...
nlohmann::json ItemObject(const OutputItem& item, std::string_view name,
                          size_t index, std::string_view status,
                          nlohmann::json logprobs);
// Where an answer was cut, its last item is.
nlohmann::json OutputObject(const std::vector<OutputItem>& items,
                            std::string_view name, std::string_view status,
                            nlohmann::json logprobs);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_RESPONSE_OUTPUT_H_
