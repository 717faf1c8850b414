// Any answer, in any pieces, as text with calls of tools in it. What comes out
// does not depend on the pieces, and is no more than went in.
#include <string>
#include <vector>

#include "engine/model/tool_format.h"
#include "tests/fuzz/fuzz.h"

namespace {

using xcache::ToolCallReader;

struct Shown {
  std::string text, calls;
};

Shown Read(std::string_view answer, size_t piece) {
  ToolCallReader reader;
  Shown out;
  const auto take = [&](const std::vector<ToolCallReader::Part>& parts) {
    for (const auto& part : parts) {
      XCACHE_FUZZ_CHECK(part.kind == ToolCallReader::Part::Kind::kCall ||
                        !part.text.empty());
      if (part.kind == ToolCallReader::Part::Kind::kText) {
        out.text += part.text;
      } else {
        out.calls += part.text;
      }
    }
  };
  for (size_t at = 0; at < answer.size(); at += piece) {
    take(reader.Add(answer.substr(at, piece)));
  }
  take(reader.Finish());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view answer(reinterpret_cast<const char*>(data) + 1,
                                size - 1);
  const Shown whole = Read(answer, answer.size() + 1);
  const Shown parts = Read(answer, 1 + data[0] % 8);
  XCACHE_FUZZ_CHECK(whole.text == parts.text && whole.calls == parts.calls);
  XCACHE_FUZZ_CHECK(whole.text.size() + whole.calls.size() <= answer.size());
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  const std::vector<xcache::ToolCall> calls = {{"f", "{\"a\": \"}\\\"\"}"},
                                               {"g", "[1, {}]"}};
  return {"a" + xcache::WithCalls("So: ", calls),
          "b<tool_call>\n{\"name\": \"f\", \"arg", "c < <tool_call>",
          "d" + xcache::WithCalls("", calls) + " and\n" +
              xcache::WithCalls("more", calls)};
}
