#include "server/core/sessions/document.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/model/chat_template.h"
#include "nlohmann/json.hpp"
#include "server/core/sessions/conversation.h"
#include "server/core/sessions/remat_setting.h"

namespace xcache {
namespace {

using Json = nlohmann::json;

constexpr char kFormat[] = "xcache-session";
// Document, messages, message, tokens: nothing lies deeper.
constexpr int kMaxDepth = 4;
// Of a message: itself, two texts, the list of its tokens, and three keys.
constexpr size_t kMaxValues =
    kMaxDocumentTokens + 7 * kMaxDocumentMessages + 64;
constexpr uint64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

absl::Status Bad(std::string_view field, std::string_view takes,
                 const absl::AlphaNum& found) {
  return FieldError(absl::StrCat("document: ", std::string(field)), takes,
                    found);
}

// A value as an error shows it: what it is, or the beginning of it.
std::string Shown(const Json& value) {
  if (value.is_structured()) return value.type_name();
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  constexpr size_t kMost = 40;
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

// Reads the fields of one object, each of which may be missing. The first that
// is not of its kind is the error.
class Fields {
 public:
  Fields(const Json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  const Json* Find(const char* name) {
    const auto it = object_.find(name);
    if (it == object_.end()) return nullptr;
    ++num_found_;
    return &*it;
  }
  void String(const char* name, size_t max_bytes, std::string* out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_string()) return Fail(name, "a string", Shown(*value));
    const auto& text = value->get_ref<const std::string&>();
    if (text.size() > max_bytes) {
      return Fail(name, absl::StrCat("at most ", max_bytes, " bytes"),
                  text.size());
    }
    *out = text;
  }
  void Bool(const char* name, bool* out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fail(name, "true or false", Shown(*value));
    *out = value->get<bool>();
  }
  void Int(const char* name, uint64_t max, uint64_t* out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_number_unsigned() || value->get<uint64_t>() > max) {
      return Fail(name, absl::StrCat("an integer in [0, ", max, "]"),
                  Shown(*value));
    }
    *out = value->get<uint64_t>();
  }
  void Ms(const char* name, int64_t* out) {
    uint64_t value = static_cast<uint64_t>(*out);
    // In microseconds it must be an int64 as well.
    Int(name, kMaxInt64 / 1000, &value);
    *out = static_cast<int64_t>(value);
  }
  void Fail(const char* name, std::string_view takes,
            const absl::AlphaNum& found) {
    status_.Update(Bad(absl::StrCat(where_, name), takes, found));
  }
  // REQUIRES: every known field was asked for.
  absl::Status Finish() {
    if (status_.ok() && num_found_ < object_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("document: ", where_.empty() ? "it" : where_, " has ",
                       object_.size() - num_found_, " fields that version ",
                       kSessionDocumentVersion, " does not know"));
    }
    return status_;
  }

 private:
  const Json& object_;
  const std::string where_;
  size_t num_found_ = 0;
  absl::Status status_;
};

std::optional<Role> ParseRole(std::string_view name) {
  for (const Role role : {Role::kSystem, Role::kUser, Role::kAssistant}) {
    if (name == RoleName(role)) return role;
  }
  return std::nullopt;
}

// Reads a document without keeping any of it, and ends where it is no JSON or
// has more or deeper values than a session has.
class Limits final : public nlohmann::json_sax<Json> {
 public:
  absl::Status status() const { return status_; }

  bool null() override { return Count(); }
  bool boolean(bool) override { return Count(); }
  bool number_integer(int64_t) override { return Count(); }
  bool number_unsigned(uint64_t) override { return Count(); }
  bool number_float(double, const std::string&) override { return Count(); }
  bool string(std::string&) override { return Count(); }
  bool binary(Json::binary_t&) override { return Count(); }
  bool key(std::string&) override { return Count(); }
  bool start_object(size_t) override { return Open(); }
  bool start_array(size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    status_ = Bad("it", "JSON in UTF-8",
                  absl::StrCat("what stands at byte ", position));
    return false;
  }

 private:
  bool Count() {
    if (++num_values_ <= kMaxValues) return true;
    status_ =
        Bad("it", absl::StrCat("at most ", kMaxValues, " values"), "more");
    return false;
  }
  bool Open() {
    if (++depth_ <= kMaxDepth) return Count();
    status_ = Bad("it", absl::StrCat("at most ", kMaxDepth, " deep"), "deeper");
    return false;
  }
  bool Close() {
    --depth_;
    return true;
  }

  int depth_ = 0;
  size_t num_values_ = 0;
  absl::Status status_;
};

absl::StatusOr<Json> ReadJson(std::string_view json) {
  if (json.size() > kMaxDocumentBytes) {
    return Bad("it", absl::StrCat("at most ", kMaxDocumentBytes, " bytes"),
               json.size());
  }
  Limits limits;
  Json::sax_parse(json, &limits);
  XC_RETURN_IF_ERROR(limits.status());
  Json document = Json::parse(json, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    return Bad("it", "a JSON object", document.type_name());
  }
  return document;
}

absl::Status ReadTokens(const Json& ids, const std::string& where,
                        SessionRecord* record, SessionMessage* message) {
  if (!ids.is_array()) return Bad(where, "a list of token ids", Shown(ids));
  message->token_begin = static_cast<uint32_t>(record->tokens.size());
  for (const Json& id : ids) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      return Bad(where, "a list of token ids",
                 absl::StrCat("one with ", Shown(id)));
    }
    record->tokens.push_back(id.get<int32_t>());
  }
  if (record->tokens.size() > kMaxDocumentTokens) {
    return Bad(where, absl::StrCat("at most ", kMaxDocumentTokens, " in all"),
               "more");
  }
  message->token_end = static_cast<uint32_t>(record->tokens.size());
  return absl::OkStatus();
}

absl::Status ReadMessages(const Json& list, SessionRecord* record) {
  if (!list.is_array()) return Bad("messages", "a list", Shown(list));
  if (list.size() > kMaxDocumentMessages) {
    return Bad("messages", absl::StrCat("at most ", kMaxDocumentMessages),
               list.size());
  }
  size_t with_tokens = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = absl::StrCat("messages[", i, "]");
    if (!list[i].is_object()) return Bad(where, "an object", Shown(list[i]));
    Fields fields(list[i], where + ".");
    SessionMessage message;
    std::string role;
    fields.String("role", 16, &role);
    fields.String("content", kMaxDocumentBytes, &message.content);
    const Json* tokens = fields.Find("tokens");
    XC_RETURN_IF_ERROR(fields.Finish());
    const std::optional<Role> parsed = ParseRole(role);
    if (!parsed.has_value()) {
      return Bad(where + ".role", "system, user or assistant",
                 absl::StrCat("'", role, "'"));
    }
    message.role = static_cast<uint8_t>(*parsed);
    if (!list[i].contains("content")) {
      return Bad(where + ".content", "a string", "missing");
    }
    if (tokens != nullptr) {
      ++with_tokens;
      XC_RETURN_IF_ERROR(
          ReadTokens(*tokens, where + ".tokens", record, &message));
    }
    record->messages.push_back(std::move(message));
  }
  if (with_tokens != 0 && with_tokens != list.size()) {
    return Bad("messages", "all with tokens or all without",
               absl::StrCat(with_tokens, " of ", list.size(), " with"));
  }
  return absl::OkStatus();
}

absl::Status ReadDigest(const std::string& hex, Digest* digest) {
  const bool is_hex = std::all_of(hex.begin(), hex.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
  if (!is_hex || hex.size() != 2 * digest->size()) {
    return Bad("model_fp", "64 of [0-9a-f]",
               absl::StrCat("'", absl::CHexEscape(hex), "'"));
  }
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), digest->begin());
  return absl::OkStatus();
}

}  // namespace

std::string WriteSessionDocument(const SessionRecord& record,
                                 bool with_tokens) {
  // In the order that a reader looks for them.
  nlohmann::ordered_json out = {{"format", kFormat},
                                {"version", kSessionDocumentVersion},
                                {"id", record.id},
                                {"title", record.title},
                                {"turn", record.turn},
                                {"create_time_ms", record.create_ms},
                                {"update_time_ms", record.update_ms},
                                {"ttl_ms", record.ttl_ms},
                                {"pinned", record.pinned},
                                {"model_fp", ToHex(record.model_fp)},
                                {"codec", record.codec},
                                {"numerics_id", record.numerics_id}};
  if (const auto remat = RematOf(record.settings)) {
    out["remat"] = RematPolicyName(*remat);
  }
  out["retokenized"] = IsRetokenized(record);
  auto& messages = out["messages"] = nlohmann::ordered_json::array();
  for (const SessionMessage& message : record.messages) {
    nlohmann::ordered_json item = {
        {"role", RoleName(static_cast<Role>(message.role))},
        {"content", message.content}};
    if (with_tokens) {
      item["tokens"] = nlohmann::ordered_json::array();
      for (uint32_t i = message.token_begin; i < message.token_end; ++i) {
        item["tokens"].push_back(record.tokens[i]);
      }
    }
    messages.push_back(std::move(item));
  }
  return out.dump(-1, ' ', false,
                  nlohmann::ordered_json::error_handler_t::replace);
}

absl::StatusOr<SessionRecord> ParseSessionDocument(std::string_view json) {
  XC_ASSIGN_OR_RETURN(const Json document, ReadJson(json));
  Fields fields(document, "");
  std::string format, model_fp, remat;
  uint64_t version = 0;
  bool retokenized = false;
  SessionRecord record;
  fields.String("format", 64, &format);
  fields.Int("version", kMaxInt64, &version);
  if (format != kFormat) {
    return Bad("format", absl::StrCat("'", kFormat, "'"),
               absl::StrCat("'", absl::CHexEscape(format), "'"));
  }
  if (version != kSessionDocumentVersion) {
    return Bad("version", absl::StrCat(kSessionDocumentVersion), version);
  }
  fields.String("id", 128, &record.id);
  fields.String("title", 256, &record.title);
  fields.Int("turn", kMaxInt64, &record.turn);
  fields.Ms("create_time_ms", &record.create_ms);
  fields.Ms("update_time_ms", &record.update_ms);
  fields.Ms("ttl_ms", &record.ttl_ms);
  fields.Bool("pinned", &record.pinned);
  fields.String("model_fp", 64, &model_fp);
  fields.String("codec", 256, &record.codec);
  fields.String("numerics_id", 256, &record.numerics_id);
  fields.String("remat", 16, &remat);
  fields.Bool("retokenized", &retokenized);
  const Json* messages = fields.Find("messages");
  XC_RETURN_IF_ERROR(fields.Finish());
  if (messages == nullptr) return Bad("messages", "a list", "missing");
  if (!model_fp.empty()) {
    XC_RETURN_IF_ERROR(ReadDigest(model_fp, &record.model_fp));
  }
  if (!remat.empty()) {
    XC_ASSIGN_OR_RETURN(const RematPolicy policy, ParseRematPolicy(remat));
    SetRemat(policy, &record.settings);
  }
  if (retokenized) MarkRetokenized(&record);
  XC_RETURN_IF_ERROR(ReadMessages(*messages, &record));
  if (!document.contains("turn")) record.turn = CountAnswers(record);
  return record;
}

}  // namespace xcache
