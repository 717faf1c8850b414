// Fields of a request's JSON, read and checked one by one. Every error is
// INVALID_ARGUMENT of JsonFieldError (json_body.h).
#ifndef XCACHE_SERVER_HTTP_JSON_FIELDS_H_
#define XCACHE_SERVER_HTTP_JSON_FIELDS_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace xcache {

inline constexpr int64_t kMaxJsonInt = std::numeric_limits<int32_t>::max();

// The field, or null where it is not there or null: clients send null for what
// they do not set.
const nlohmann::json* Find(const nlohmann::json& object, const char* name);
// Whole numbers, also where they are written 1.0.
std::optional<int64_t> ToInteger(const nlohmann::json& value);

// These leave `out` as it is where the field is not there.
absl::Status ReadBool(const nlohmann::json& body, const char* name, bool* out);
absl::Status ReadInt(const nlohmann::json& body, const char* name, int64_t low,
                     int64_t high, std::optional<int64_t>* out);
absl::Status ReadFloat(const nlohmann::json& body, const char* name, double low,
                       double high, float* out);
absl::Status ReadString(const nlohmann::json& body, const char* name,
                        std::string* out);

// `what` is known, and not there.
absl::Status NotOffered(const std::string& field, std::string_view what);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_JSON_FIELDS_H_
