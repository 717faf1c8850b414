#include "server/frontend/trace_context.h"

namespace xcache {
namespace {

// version "-" trace-id "-" parent-id "-" trace-flags
constexpr size_t kTraceAt = 3, kTraceDigits = 32;
constexpr size_t kSpanAt = 36, kSpanDigits = 16;
constexpr size_t kFlagsAt = 53, kLength = 55;

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == text.npos;
}

bool IsId(std::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != text.npos;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view value) {
  if (value.size() < kLength) return std::nullopt;
  const std::string_view version = value.substr(0, 2);
  const std::string_view trace = value.substr(kTraceAt, kTraceDigits);
  const std::string_view span = value.substr(kSpanAt, kSpanDigits);
  const std::string_view flags = value.substr(kFlagsAt, 2);
  for (const size_t dash : {kTraceAt - 1, kSpanAt - 1, kFlagsAt - 1}) {
    if (value[dash] != '-') return std::nullopt;
  }
  if (!IsHex(version) || version == "ff" || !IsId(trace) || !IsId(span) ||
      !IsHex(flags)) {
    return std::nullopt;
  }
  // Version 00 ends here; what a later one adds begins with a dash.
  if (value.size() > kLength && (version == "00" || value[kLength] != '-')) {
    return std::nullopt;
  }
  // The last bit, of an odd last digit.
  const bool sampled =
      std::string_view("13579bdf").find(flags[1]) != std::string_view::npos;
  return TraceContext{std::string(trace), std::string(span), sampled};
}

}  // namespace xcache
