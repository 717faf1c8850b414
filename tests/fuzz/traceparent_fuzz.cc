// Headers of any bytes: what is taken has the form that the specification
// gives it, and is in the header where it says.
#include <string>

#include "server/frontend/trace_context.h"
#include "tests/fuzz/fuzz.h"

namespace {

bool IsId(const std::string& text, size_t digits) {
  return text.size() == digits &&
         text.find_first_not_of("0123456789abcdef") == text.npos &&
         text.find_first_not_of('0') != text.npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string value(reinterpret_cast<const char*>(data), size);
  const auto trace = xcache::ParseTraceparent(value);
  if (!trace.has_value()) return 0;
  XCACHE_FUZZ_CHECK(IsId(trace->trace_id, 32) && IsId(trace->span_id, 16));
  const std::string ids = "-" + trace->trace_id + "-" + trace->span_id + "-";
  XCACHE_FUZZ_CHECK(value.compare(2, ids.size(), ids) == 0);
  const bool is_first = value.compare(0, 2, "00") == 0;
  XCACHE_FUZZ_CHECK(size == 55 || (!is_first && value[55] == '-'));
  // What was read makes the same header again.
  const std::string again = "00" + ids + (trace->sampled ? "01" : "00");
  const auto same = xcache::ParseTraceparent(again);
  XCACHE_FUZZ_CHECK(same.has_value() && same->trace_id == trace->trace_id &&
                    same->span_id == trace->span_id &&
                    same->sampled == trace->sampled);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
          "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more",
          "00-00000000000000000000000000000000-b7ad6b7169203331-01"};
}
