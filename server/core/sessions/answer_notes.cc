#include "server/core/sessions/answer_notes.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace xcache {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kNoteSetting = "answer";
constexpr std::string_view kDataSetting = "data";

constexpr std::pair<FinishReason, std::string_view> kReasons[] = {
    {FinishReason::kEnd, "end"},
    {FinishReason::kStop, "stop"},
    {FinishReason::kMaxTokens, "max_tokens"},
    {FinishReason::kContext, "context"},
    {FinishReason::kCancelled, "cancelled"}};

std::string Encode(const AnswerNote& note) {
  std::string_view reason;
  for (const auto& [known, name] : kReasons) {
    if (known == note.finish_reason) reason = name;
  }
  return Json({{"name", note.name},
               {"data", note.data},
               {"messages", note.num_messages},
               {"finish", std::string(reason)},
               {"prompt", note.prompt_tokens},
               {"reused", note.reused_tokens},
               {"generated", note.generated_tokens}})
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<AnswerNote> Decode(const std::string& name,
                                 const std::string& value) {
  if (name != kNoteSetting) return std::nullopt;
  const Json json = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  AnswerNote note;
  const auto text = [&](const char* field) {
    const auto found = json.find(field);
    return found != json.end() && found->is_string() ? found->get<std::string>()
                                                     : std::string();
  };
  const auto number = [&](const char* field) {
    const auto found = json.find(field);
    return found != json.end() && found->is_number_unsigned()
               ? found->get<uint64_t>()
               : uint64_t{0};
  };
  note.name = text("name");
  note.data = text("data");
  note.num_messages = number("messages");
  note.prompt_tokens = number("prompt");
  note.reused_tokens = number("reused");
  note.generated_tokens = number("generated");
  const std::string reason = text("finish");
  for (const auto& [known, known_name] : kReasons) {
    if (known_name == reason) note.finish_reason = known;
  }
  if (note.name.empty() || note.num_messages == 0) return std::nullopt;
  return note;
}

// How many went.
template <typename Goes>
size_t EraseNotes(SessionRecord* record, Goes goes) {
  return std::erase_if(record->settings, [&](const auto& setting) {
    const std::optional<AnswerNote> note =
        Decode(setting.first, setting.second);
    return note.has_value() && goes(*note);
  });
}

}  // namespace

std::vector<AnswerNote> AnswerNotesOf(const SessionRecord& record) {
  std::vector<AnswerNote> out;
  for (const auto& [name, value] : record.settings) {
    std::optional<AnswerNote> note = Decode(name, value);
    if (note.has_value() && note->num_messages <= record.messages.size()) {
      out.push_back(*std::move(note));
    }
  }
  return out;
}

absl::StatusOr<uint64_t> EndOfAnswer(const SessionRecord& record,
                                     std::string_view name) {
  if (name.empty()) return record.messages.size();
  for (const AnswerNote& note : AnswerNotesOf(record)) {
    if (note.name == name) return note.num_messages;
  }
  return absl::NotFoundError(
      absl::StrCat("session '", record.id, "' has no answer of that name"));
}

void AddAnswerNote(const AnswerNote& note, SessionRecord* record) {
  record->settings.emplace_back(kNoteSetting, Encode(note));
}

void KeepAnswerNotes(uint64_t num_messages, SessionRecord* record) {
  EraseNotes(record, [&](const AnswerNote& note) {
    return note.num_messages > num_messages;
  });
}

bool EraseAnswerNote(std::string_view name, SessionRecord* record) {
  return EraseNotes(record, [&](const AnswerNote& note) {
           return note.name == name;
         }) > 0;
}

void ShiftAnswerNotes(int64_t num_messages, SessionRecord* record) {
  for (auto& [name, value] : record->settings) {
    std::optional<AnswerNote> note = Decode(name, value);
    if (!note.has_value()) continue;
    note->num_messages += static_cast<uint64_t>(num_messages);
    value = Encode(*note);
  }
}

std::string SessionDataOf(const SessionRecord& record) {
  for (const auto& [name, value] : record.settings) {
    if (name == kDataSetting) return value;
  }
  return "";
}

void SetSessionData(std::string_view data, SessionRecord* record) {
  std::erase_if(record->settings, [](const auto& setting) {
    return setting.first == kDataSetting;
  });
  if (!data.empty()) record->settings.emplace_back(kDataSetting, data);
}

}  // namespace xcache
