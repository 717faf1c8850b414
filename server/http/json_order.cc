#include "server/http/json_order.h"

#include <algorithm>
#include <string>
#include <utility>

#include "server/http/json_body.h"

namespace xcache {
namespace {

using nlohmann::json;

size_t SkipSpace(std::string_view text, size_t at) {
  return std::min(text.find_first_not_of(" \t\n\r", at), text.size());
}

// Behind the value that begins at `at`.
size_t SkipValue(std::string_view text, size_t at) {
  int depth = 0;
  bool in_string = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (in_string) {
      if (c == '\\') {
        ++at;
      } else if (c == '"') {
        in_string = false;
        if (depth == 0) return at + 1;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (depth == 0) return at;  // behind a number or a name
      if (--depth == 0) return at + 1;
    } else if (depth == 0 &&
               (c == ',' || c == ' ' || c == '\t' || c == '\n' || c == '\r')) {
      return at;
    }
  }
  return text.size();
}

// Of an object or an array: calls `part(name, value)` for each of its parts, of
// an array without a name.
template <typename Part>
void ForEachPart(std::string_view text, char open, Part part) {
  size_t at = SkipSpace(text, 0);
  if (at == text.size() || text[at] != open) return;
  at = SkipSpace(text, at + 1);
  while (at < text.size() && text[at] != '}' && text[at] != ']') {
    std::string_view name;
    if (open == '{') {
      const size_t end = SkipValue(text, at);
      if (end < at + 2) return;
      name = text.substr(at + 1, end - at - 2);
      at = SkipSpace(text, end);
      at = SkipSpace(text, std::min(at + 1, text.size()));  // its colon
    }
    const size_t end = SkipValue(text, at);
    if (end == at) return;
    part(name, text.substr(at, end - at));
    at = SkipSpace(text, end);
    if (at < text.size() && text[at] == ',') at = SkipSpace(text, at + 1);
  }
}

// `raw`: the text of `*value`, where it is known.
void Keep(std::string_view raw, json* value) {
  if (value->is_object() && !raw.empty()) *value = std::string(raw);
}

void KeepAt(std::string_view raw, std::initializer_list<const char*> path,
            json* value) {
  for (const char* name : path) {
    const auto found = value->is_object() ? value->find(name) : value->end();
    if (!value->is_object() || found == value->end()) return;
    value = &*found;
    raw = RawMember(raw, name);
  }
  Keep(raw, value);
}

}  // namespace

std::string_view RawMember(std::string_view text, std::string_view name) {
  std::string_view found;
  ForEachPart(text, '{', [&](std::string_view its, std::string_view value) {
    if (its == name) found = value;
  });
  return found;
}

std::vector<std::string_view> RawElements(std::string_view text) {
  std::vector<std::string_view> out;
  ForEachPart(text, '[', [&](std::string_view, std::string_view value) {
    out.push_back(value);
  });
  return out;
}

void KeepOrders(std::string_view text, json* body) {
  KeepAt(text, {"response_format", "json_schema", "schema"}, body);
  KeepAt(text, {"text", "format", "schema"}, body);
  KeepAt(text, {"structured_outputs", "json"}, body);
  KeepAt(text, {"guided_json"}, body);
  const auto tools = body->find("tools");
  if (tools == body->end() || !tools->is_array()) return;
  const std::vector<std::string_view> raw =
      RawElements(RawMember(text, "tools"));
  if (raw.size() != tools->size()) return;
  for (size_t i = 0; i < raw.size(); ++i) Keep(raw[i], &(*tools)[i]);
}

std::string OrderedText(const json& value) {
  return value.is_string() ? value.get<std::string>() : JsonBytes(value);
}

}  // namespace xcache
