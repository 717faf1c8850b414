// Which trace a call belongs to: the header `traceparent` of W3C Trace Context
// (https://www.w3.org/TR/trace-context/), as OpenTelemetry's clients send it.
#ifndef XCACHE_SERVER_FRONTEND_TRACE_CONTEXT_H_
#define XCACHE_SERVER_FRONTEND_TRACE_CONTEXT_H_

#include <optional>
#include <string>
#include <string_view>

namespace xcache {

inline constexpr char kTraceparentHeader[] = "traceparent";

struct TraceContext {
  std::string trace_id;  // 32 hexadecimal digits in lower case, not all zero
  std::string span_id;   // the caller's span: 16 of them
  bool sampled = false;
};

// Nothing where the value is not to be used (section 3.2.2 and 4.3 there): then
// the call belongs to no trace, and that is no error. Values of later versions
// are read as far as they are of this one's form.
std::optional<TraceContext> ParseTraceparent(std::string_view value);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_TRACE_CONTEXT_H_
