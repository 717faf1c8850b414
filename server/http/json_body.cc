#include "server/http/json_body.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/utf8.h"

namespace xcache {
namespace {

using nlohmann::json;

// nlohmann's value is 16 bytes, and a vector of them grows to twice its size.
// A member of an object is a node of a map: 32 bytes of links, a key (32), the
// value, and for a key or a text beyond 15 bytes what malloc adds.
constexpr int64_t kElementBytes = 3 * 16;
constexpr int64_t kTextBytes = 64;
constexpr int64_t kMemberBytes = 112;

constexpr char kFieldPayload[] = "xcache/field";
constexpr char kCodePayload[] = "xcache/openai-code";
constexpr size_t kMaxShownBytes = 64;

// Of a value that is not what it should be.
std::string Shown(const json& value) {
  switch (value.type()) {
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return "an array";
    case json::value_t::string: {
      const std::string& text = value.get_ref<const std::string&>();
      return text.size() <= kMaxShownBytes ? JsonText(text) : "a long string";
    }
    default:
      return JsonBytes(value);
  }
}

}  // namespace

JsonCost CostOf(std::string_view text) {
  JsonCost cost;
  int64_t elements = 1, texts = 0, members = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        ++texts;
        for (++i; i < text.size() && text[i] != '"'; ++i) {
          if (text[i] == '\\') ++i;
        }
        break;
      case '{':
      case '[':
        ++elements;
        cost.depth = std::max(cost.depth, ++depth);
        break;
      case '}':
      case ']':
        --depth;
        break;
      case ',':
        ++elements;
        break;
      case ':':
        ++members;
        break;
      default:
        break;
    }
  }
  cost.bytes =
      elements * kElementBytes + texts * kTextBytes + members * kMemberBytes;
  return cost;
}

absl::StatusOr<json> ParseJsonObject(std::string_view text,
                                     const JsonCost& cost) {
  if (cost.depth > kMaxJsonDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body nests ", cost.depth, " levels deep, of at most ",
                     kMaxJsonDepth));
  }
  json value;
  try {
    value = json::parse(text);
  } catch (const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string why = error.what();
    if (const size_t end = why.find("] "); end != why.npos) {
      why.erase(0, end + 2);
    }
    constexpr size_t kMaxWhyBytes = 300;
    return absl::InvalidArgumentError(absl::StrCat(
        "the body is no JSON: ", ToUtf8(why.substr(0, kMaxWhyBytes))));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body must be a JSON object, not ", Shown(value)));
  }
  return value;
}

absl::Status JsonFieldError(std::string_view field, std::string_view takes,
                            const json& found) {
  return WithField(FieldError(field, takes, Shown(found)), field);
}

absl::Status WithField(absl::Status status, std::string_view field) {
  status.SetPayload(kFieldPayload,
                    absl::Cord(absl::string_view(field.data(), field.size())));
  return status;
}

absl::Status WithCode(absl::Status status, std::string_view code) {
  status.SetPayload(kCodePayload,
                    absl::Cord(absl::string_view(code.data(), code.size())));
  return status;
}

std::string CodeOf(const absl::Status& status) {
  const auto code = status.GetPayload(kCodePayload);
  return code.has_value() ? std::string(*code) : "";
}

std::string FieldOf(const absl::Status& status) {
  const auto field = status.GetPayload(kFieldPayload);
  return field.has_value() ? std::string(*field) : "";
}

std::string JsonText(std::string_view text) { return JsonBytes(json(text)); }

std::string JsonBytes(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace xcache
