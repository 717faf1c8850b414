#include "engine/grammar/grammar_spec.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "nlohmann/json.hpp"

namespace xcache {
namespace {

using nlohmann::json;

// Where a schema says how often something comes.
constexpr std::string_view kCounts[] = {
    "minItems",      "maxItems",      "minLength",   "maxLength",
    "minProperties", "maxProperties", "minContains", "maxContains"};

// How deep brackets are, without a parser that recurses.
int DepthOf(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

// The number at `*at`, which then is behind it; at most `most` + 1.
int64_t ReadNumber(std::string_view text, size_t* at, int64_t most) {
  int64_t number = 0;
  for (; *at < text.size() && text[*at] >= '0' && text[*at] <= '9'; ++*at) {
    number = std::min(most + 1, number * 10 + (text[*at] - '0'));
  }
  return number;
}

// See kMaxOptional.
constexpr int64_t kRulesCost = 8;

// How large the automaton of a regular expression may become, by its spelling.
class RegexSize {
 public:
  // INVALID_ARGUMENT: `field` is over a limit.
  absl::Status Add(std::string_view field, std::string_view regex,
                   bool in_json);

 private:
  struct Part {
    int64_t positions = 0;
    int64_t optional = 0;
    int64_t places = 0;  // where something is optional
    Part& operator+=(const Part& other) {
      positions += other.positions;
      optional += other.optional;
      places += other.places;
      return *this;
    }
    Part Times(int64_t n) const {
      return {positions * n, optional * n, places * n};
    }
  };

  // The character or class at `*at`, which then is behind it.
  static Part Atom(std::string_view regex, size_t* at);
  // The same part, as often as what stands at `*at` says.
  static Part Repeated(const Part& part, std::string_view regex, size_t* at);

  // Of all that was added.
  int64_t positions_ = 0;
  int64_t optional_ = 0;
};

RegexSize::Part RegexSize::Atom(std::string_view regex, size_t* at) {
  const char c = regex[(*at)++];
  Part part{.positions = 1, .optional = 0, .places = 0};
  if (c == '.') {
    part.positions = 4;
  } else if (c == '\\' && *at < regex.size()) {
    const char kind = regex[(*at)++];
    if (kind == 'D' || kind == 'W' || kind == 'S') part.positions = 4;
  } else if (c == '[') {
    if (*at < regex.size() && regex[*at] == '^') {
      part.positions = 4;
      ++*at;
    }
    // "]" is one of the class where it comes first.
    if (*at < regex.size() && regex[*at] == ']') ++*at;
    while (*at < regex.size() && regex[*at] != ']') {
      *at += regex[*at] == '\\' ? 2 : 1;
    }
    *at = std::min(*at + 1, regex.size());
  }
  return part;
}

RegexSize::Part RegexSize::Repeated(const Part& part, std::string_view regex,
                                    size_t* at) {
  if (*at >= regex.size()) return part;
  int64_t least = 0, most = 1;
  const char c = regex[*at];
  if (c == '+') {
    least = 1;
    most = 2;
  } else if (c == '{') {
    size_t end = *at + 1;
    least = most = ReadNumber(regex, &end, kMaxRepeats);
    if (end < regex.size() && regex[end] == ',') {
      ++end;
      const size_t digits = end;
      most = ReadNumber(regex, &end, kMaxRepeats);
      if (end == digits) most = least + 1;  // any number of times
    }
    if (end >= regex.size() || regex[end] != '}') return part;  // a text
    *at = end;
  } else if (c != '*' && c != '?') {
    return part;
  }
  ++*at;
  // "a*?" and "a*+" are of the same texts.
  if (*at < regex.size() && (regex[*at] == '?' || regex[*at] == '+')) ++*at;
  Part out = part.Times(std::max<int64_t>(1, most));
  if (most > least) {
    out.optional += part.positions * (most - least);
    ++out.places;
  }
  return out;
}

absl::Status RegexSize::Add(std::string_view field, std::string_view regex,
                            bool in_json) {
  if (regex.size() > kMaxRegexBytes) {
    return FieldError(field, absl::StrCat("at most ", kMaxRegexBytes, " bytes"),
                      regex.size());
  }
  std::vector<Part> groups(1);  // those that are open, the whole first
  for (size_t at = 0; at < regex.size();) {
    Part part;
    if (regex[at] == '(') {
      if (groups.size() > kMaxRegexDepth) {
        return FieldError(
            field, absl::StrCat("of groups at most ", kMaxRegexDepth, " deep"),
            "deeper");
      }
      groups.emplace_back();
      ++at;
      // "(?:": what kind of group it is.
      if (at < regex.size() && regex[at] == '?') at += 2;
      continue;
    }
    if (regex[at] == ')' && groups.size() > 1) {
      part = groups.back();
      groups.pop_back();
      ++at;
    } else {
      part = Atom(regex, &at);
    }
    groups.back() += Repeated(part, regex, &at);
    if (groups.back().positions > kMaxRepeats) break;
  }
  Part all;
  for (const Part& group : groups) all += group;
  if (in_json && !std::all_of(regex.begin(), regex.end(),
                              [](char c) { return c >= 0x20 && c <= 0x7e; })) {
    all = all.Times(kRulesCost);
  }
  positions_ += all.positions;
  if (all.places > 1) optional_ += all.optional;
  if (positions_ > kMaxRepeats) {
    return FieldError(field,
                      absl::StrCat("of at most ", kMaxRepeats,
                                   " positions, each as often as it may come"),
                      positions_);
  }
  if (all.places > 1 && all.optional > kMaxOptional) {
    return FieldError(field,
                      absl::StrCat("of at most ", kMaxOptional,
                                   " positions that may be left out"),
                      all.optional);
  }
  if (optional_ > kMaxAllOptional) {
    return FieldError(
        field,
        absl::StrCat("with the others of at most ", kMaxAllOptional,
                     " positions that may be left out"),
        optional_);
  }
  return absl::OkStatus();
}

// Of what all of kCounts say: many of them side by side are all walked at once.
constexpr int kMaxAllRepeats = 50'000;

// Of a schema, what is said about values that would not be held to. What an
// annotation is (title, default, format where it is not known) is no such
// thing.
constexpr std::string_view kUnheld[] = {"not",          "if",
                                        "then",         "else",
                                        "contains",     "dependentRequired",
                                        "dependencies", "dependentSchemas",
                                        "$dynamicRef",  "$recursiveRef"};
// Where one of these is, the compiler looks at nothing else but it.
constexpr std::string_view kAlone[] = {"$ref",  "const", "enum",
                                       "anyOf", "oneOf", "allOf"};
constexpr std::string_view kBesides[] = {
    "$schema",     "$id",          "$comment", "$defs",      "definitions",
    "title",       "default",      "examples", "readOnly",   "writeOnly",
    "description", "example",      "nullable", "deprecated", "$anchor",
    "format",      "discriminator"};
constexpr std::string_view kSchemas[] = {"items", "additionalProperties",
                                         "propertyNames", "unevaluatedItems",
                                         "unevaluatedProperties"};
constexpr std::string_view kSchemaLists[] = {"anyOf", "oneOf", "allOf",
                                             "prefixItems"};
constexpr std::string_view kSchemaMaps[] = {"properties", "patternProperties",
                                            "$defs", "definitions"};

template <size_t n>
bool IsIn(const std::string_view (&names)[n], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// Walks a schema, and only where schemas are: a property may have any name.
class SchemaCheck {
 public:
  // REQUIRES: not deep.
  absl::Status Check(const json& schema) {
    if (!schema.is_object()) return absl::OkStatus();  // true, false, or wrong
    XC_RETURN_IF_ERROR(CheckAlone(schema));
    for (const auto& [name, child] : schema.items()) {
      XC_RETURN_IF_ERROR(CheckMember(name, child));
    }
    return absl::OkStatus();
  }

 private:
  static absl::Status Unheld(std::string_view name, std::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("schema: ", std::string(name),
                     " would not be held to: ", std::string(why)));
  }

  static absl::Status CheckAlone(const json& schema) {
    const std::string_view* alone = std::find_if(
        std::begin(kAlone), std::end(kAlone),
        [&](std::string_view name) { return schema.contains(name); });
    if (alone == std::end(kAlone)) return absl::OkStatus();
    for (const auto& [name, child] : schema.items()) {
      if (name == *alone || IsIn(kBesides, name)) continue;
      if (name == "type" && FitsType(schema, *alone, child)) continue;
      return Unheld(name,
                    absl::StrCat("it stands beside ", std::string(*alone)));
    }
    return absl::OkStatus();
  }

  // Whether a "type" says nothing that the values do not.
  static bool FitsType(const json& schema, std::string_view alone,
                       const json& type) {
    const auto fits = [&](const json& value) {
      const auto is = [&](const json& name) {
        return name == value.type_name() ||
               (name == "integer" && value.is_number_integer());
      };
      return type.is_array() ? std::any_of(type.begin(), type.end(), is)
                             : is(type);
    };
    if (alone == "const") return fits(schema["const"]);
    return alone == "enum" && schema["enum"].is_array() &&
           std::all_of(schema["enum"].begin(), schema["enum"].end(), fits);
  }

  absl::Status CheckMember(const std::string& name, const json& child) {
    if (IsIn(kUnheld, name)) return Unheld(name, "it is not known here");
    if (name == "uniqueItems" && child != false) {
      return Unheld(name, "it is not known here");
    }
    if (name == "$ref" && child.is_string()) {
      const std::string& uri = child.get_ref<const std::string&>();
      if (uri != "#" && !uri.starts_with("#/$defs/") &&
          !uri.starts_with("#/definitions/") &&
          !uri.starts_with("#/properties/")) {
        return Unheld(name,
                      "it is none of #, #/$defs/..., #/definitions/... "
                      "and #/properties/...");
      }
    }
    if (IsIn(kCounts, name) && child.is_number()) {
      const double count = child.get<double>();
      if (!(count <= kMaxRepeats)) {
        return FieldError(absl::StrCat("schema: ", name),
                          absl::StrCat("at most ", kMaxRepeats), child.dump());
      }
      counts_ += count;
      if (counts_ > kMaxAllRepeats) {
        return FieldError(absl::StrCat("schema: ", name),
                          absl::StrCat("with the others at most ",
                                       kMaxAllRepeats, ", all together"),
                          counts_);
      }
    }
    if (name == "pattern" && child.is_string()) {
      return regexes_.Add("schema: pattern",
                          child.get_ref<const std::string&>(),
                          /*in_json=*/true);
    }
    if (IsIn(kSchemas, name)) return Check(child);
    const bool is_map = IsIn(kSchemaMaps, name) && child.is_object();
    if (!is_map && !(IsIn(kSchemaLists, name) && child.is_array())) {
      return absl::OkStatus();
    }
    for (const auto& [key, schema] : child.items()) {
      if (name == "patternProperties") {
        XC_RETURN_IF_ERROR(
            regexes_.Add("schema: patternProperties", key, /*in_json=*/true));
      }
      XC_RETURN_IF_ERROR(Check(schema));
    }
    return absl::OkStatus();
  }

  RegexSize regexes_;
  double counts_ = 0;
};

// All that there are, within each other.
size_t NumValues(const json& value) {
  size_t n = 1;
  if (value.is_structured()) {
    for (const json& child : value) n += NumValues(child);
  }
  return n;
}

absl::Status CheckSchema(const std::string& schema) {
  if (schema.size() > kMaxSchemaBytes) {
    return FieldError("schema",
                      absl::StrCat("at most ", kMaxSchemaBytes, " bytes"),
                      schema.size());
  }
  if (const int depth = DepthOf(schema); depth > kMaxSchemaDepth) {
    return FieldError("schema",
                      absl::StrCat("at most ", kMaxSchemaDepth, " levels deep"),
                      depth);
  }
  const json parsed = json::parse(schema, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() && !parsed.is_boolean()) {
    return FieldError("schema", "a JSON schema: an object",
                      parsed.is_discarded() ? "no JSON" : parsed.type_name());
  }
  if (const size_t n = NumValues(parsed); n > kMaxSchemaValues) {
    return FieldError(
        "schema", absl::StrCat("of at most ", kMaxSchemaValues, " values"), n);
  }
  return SchemaCheck().Check(parsed);
}

absl::Status CheckTags(const std::vector<GrammarSpec::Tag>& tags) {
  if (tags.empty() || tags.size() > kMaxTags) {
    return FieldError("schema", absl::StrCat("for 1 to ", kMaxTags, " tags"),
                      tags.size());
  }
  size_t bytes = 0;
  for (const GrammarSpec::Tag& tag : tags) {
    if (!IsUtf8(tag.begin) || !IsUtf8(tag.schema) || !IsUtf8(tag.end)) {
      return FieldError("schema", "UTF-8", "other bytes");
    }
    XC_RETURN_IF_ERROR(CheckSchema(tag.schema));
    bytes += tag.schema.size();
  }
  if (bytes <= kMaxSchemaBytes) return absl::OkStatus();
  return FieldError(
      "schema",
      absl::StrCat("of at most ", kMaxSchemaBytes, " bytes, all of them"),
      bytes);
}

absl::Status CheckChoices(const std::vector<std::string>& choices) {
  if (choices.empty() || choices.size() > kMaxChoices) {
    return FieldError("choice", absl::StrCat("1 to ", kMaxChoices, " texts"),
                      choices.size());
  }
  size_t bytes = 0;
  for (const std::string& choice : choices) {
    bytes += choice.size();
    if (choice.empty()) return FieldError("choice", "of texts", "an empty one");
    if (!IsUtf8(choice)) return FieldError("choice", "UTF-8", "other bytes");
  }
  if (bytes <= kMaxChoicesBytes) return absl::OkStatus();
  return FieldError(
      "choice", absl::StrCat("at most ", kMaxChoicesBytes, " bytes"), bytes);
}

}  // namespace

absl::Status CheckGrammar(const GrammarSpec& spec) {
  using Kind = GrammarSpec::Kind;
  const char* const field = spec.kind == Kind::kRegex ? "regex" : "schema";
  if (!IsUtf8(spec.text)) return FieldError(field, "UTF-8", "other bytes");
  switch (spec.kind) {
    case Kind::kNone:
    case Kind::kJsonObject:
      return absl::OkStatus();
    case Kind::kJsonSchema:
      return CheckSchema(spec.text);
    case Kind::kRegex:
      if (spec.text.empty()) return FieldError(field, "a text", "empty");
      return RegexSize().Add(field, spec.text, /*in_json=*/false);
    case Kind::kChoice:
      return CheckChoices(spec.choices);
    case Kind::kTagged:
      XC_RETURN_IF_ERROR(CheckTags(spec.tagged.tags));
      return CheckGrammar(Otherwise(spec));
  }
  return absl::OkStatus();
}

GrammarSpec Otherwise(const GrammarSpec& spec) {
  GrammarSpec other;
  other.kind = spec.tagged.otherwise;
  other.text = spec.text;
  other.choices = spec.choices;
  return other;
}

std::string GrammarKey(const GrammarSpec& spec) {
  std::string key = absl::StrCat(static_cast<int>(spec.kind), ":",
                                 static_cast<int>(spec.tagged.otherwise), ":",
                                 spec.text.size(), ":", spec.text);
  for (const std::string& choice : spec.choices) {
    absl::StrAppend(&key, choice.size(), ":", choice);
  }
  const GrammarSpec::Tagged& tagged = spec.tagged;
  const auto add = [&key](const std::string& part) {
    absl::StrAppend(&key, part.size(), ":", part);
  };
  absl::StrAppend(&key, tagged.once ? "one" : "many");
  add(tagged.trigger);
  add(tagged.separator);
  for (const GrammarSpec::Tag& tag : tagged.tags) {
    add(tag.begin);
    add(tag.schema);
    add(tag.end);
  }
  return key;
}

}  // namespace xcache
