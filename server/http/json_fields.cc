#include "server/http/json_fields.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/http/json_body.h"

namespace xcache {

using nlohmann::json;

const json* Find(const json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::Status ReadBool(const json& body, const char* name, bool* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) {
    return JsonFieldError(name, "true or false", *value);
  }
  *out = value->get<bool>();
  return absl::OkStatus();
}

std::optional<int64_t> ToInteger(const json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > uint64_t{std::numeric_limits<int64_t>::max()}) return {};
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();
  if (number != std::floor(number) || std::abs(number) > 9e15) return {};
  return static_cast<int64_t>(number);
}

absl::Status ReadInt(const json& body, const char* name, int64_t low,
                     int64_t high, std::optional<int64_t>* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  const std::optional<int64_t> number = ToInteger(*value);
  if (!number.has_value() || *number < low || *number > high) {
    return JsonFieldError(
        name, absl::StrCat("a whole number in [", low, ", ", high, "]"),
        *value);
  }
  *out = number;
  return absl::OkStatus();
}

absl::Status ReadFloat(const json& body, const char* name, double low,
                       double high, float* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number() || value->get<double>() < low ||
      value->get<double>() > high) {
    return JsonFieldError(
        name, absl::StrCat("a number in [", low, ", ", high, "]"), *value);
  }
  *out = static_cast<float>(value->get<double>());
  return absl::OkStatus();
}

absl::Status ReadString(const json& body, const char* name, std::string* out) {
  const json* value = Find(body, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string()) return JsonFieldError(name, "a string", *value);
  *out = value->get<std::string>();
  return absl::OkStatus();
}

absl::Status NotOffered(const std::string& field, std::string_view what) {
  return WithField(
      absl::InvalidArgumentError(absl::StrCat(
          field, ": ", std::string(what), " is not offered by this server")),
      field);
}

}  // namespace xcache
