// A request's body as JSON, with its costs known before they are incurred: a
// tree of values takes many times the bytes of its text.
#ifndef XCACHE_SERVER_HTTP_JSON_BODY_H_
#define XCACHE_SERVER_HTTP_JSON_BODY_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace xcache {

inline constexpr int kMaxJsonDepth = 64;

struct JsonCost {
  int depth = 0;      // of objects and arrays within each other
  int64_t bytes = 0;  // that the tree takes at most, beside its strings
};
// Of any bytes, in one pass over them.
JsonCost CostOf(std::string_view text);

// The value of a text of that cost. INVALID_ARGUMENT: not JSON, with the place;
// not an object; deeper than kMaxJsonDepth.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text,
                                               const JsonCost& cost);

// INVALID_ARGUMENT of FieldError, whose field a front end can tell.
absl::Status JsonFieldError(std::string_view field, std::string_view takes,
                            const nlohmann::json& found);
// The status, marked as being about the field. OK stays OK, here and below.
absl::Status WithField(absl::Status status, std::string_view field);
// The error, with OpenAI's name for it in place of our reason's.
absl::Status WithCode(absl::Status status, std::string_view code);
// That name, or nothing.
std::string CodeOf(const absl::Status& status);
// That field, or nothing.
std::string FieldOf(const absl::Status& status);

// Text in JSON, with its quotes; bytes that are no UTF-8 become U+FFFD.
std::string JsonText(std::string_view text);
// A document as bytes, the same way.
std::string JsonBytes(const nlohmann::json& value);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_JSON_BODY_H_
