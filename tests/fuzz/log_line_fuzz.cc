// Lines of the log as JSON. Of any bytes: one object, ASCII, on one line. A
// value that went through LogValue() comes back, and brings no key with it.
#include <string>

#include "engine/base/json_log.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/fuzz.h"

namespace {

nlohmann::json Read(const std::string& line) {
  const std::string text = xcache::JsonLogLine("T", "info", line);
  for (const char c : text) XCACHE_FUZZ_CHECK(c >= ' ' && c <= '~');
  nlohmann::json out = nlohmann::json::parse(text, nullptr, false);
  XCACHE_FUZZ_CHECK(out.is_object() && out["time"] == "T" &&
                    out["level"] == "info");
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  Read(bytes);
  const nlohmann::json line = Read("event a=" + xcache::LogValue(bytes) +
                                   " b=" + xcache::LogValue(bytes));
  XCACHE_FUZZ_CHECK(line.size() == 5 && line["event"] == "event");
  std::string wanted = bytes;
  for (char& c : wanted) {
    const bool escaped = c == '\n' || c == '\r' || c == '\t';
    if ((c >= 0 && c < ' ' && !escaped) || c == 0x7f) c = '?';
  }
  XCACHE_FUZZ_CHECK(line["a"] == xcache::ToUtf8(wanted) &&
                    line["b"] == line["a"]);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"request method=Chat code=OK ms=412.0 peer=\"a \\\"b\\\"\" turn=3",
          "a=b=c \"d",
          "\xc3\x28 \x1b[0m",
          "12",
          "-1.5e3",
          "key=\"\\"};
}
