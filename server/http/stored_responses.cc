#include "server/http/stored_responses.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "engine/model/tool_format.h"
#include "server/frontend/tools.h"
#include "server/http/json_body.h"
#include "server/http/response_output.h"

namespace xcache {
namespace {

using nlohmann::json;

constexpr std::string_view kResponsePrefix = "resp_";
constexpr size_t kMaxShownId = 200;
constexpr int64_t kUsPerSecond = 1'000'000;

absl::Status NoSuch(std::string_view what, std::string_view id) {
  return WithCode(
      absl::NotFoundError(absl::StrCat("there is no ", std::string(what), " '",
                                       ToUtf8(id.substr(0, kMaxShownId)), "'")),
      absl::StrCat(std::string(what), "_not_found"));
}

absl::StatusOr<SessionInfo> Find(ServerCore& core, std::string_view tenant,
                                 std::string_view session,
                                 std::string_view what, std::string_view id) {
  auto found = core.GetSession(tenant, session, /*with_messages=*/true);
  // An id that no session can have is one that none has.
  if (absl::IsNotFound(found.status()) ||
      absl::IsInvalidArgument(found.status())) {
    return NoSuch(what, id);
  }
  return found;
}

json MessageItem(std::string id, const ChatMessage& message) {
  const std::string_view text = message.role == Role::kSystem
                                    ? WithoutTools(message.content)
                                    : message.content;
  return {
      {"type", "message"},
      {"id", std::move(id)},
      {"status", "completed"},
      {"role", std::string(RoleName(message.role))},
      {"content",
       json::array({{{"type", "input_text"}, {"text", std::string(text)}}})}};
}

// What was kept of the request, or an empty object.
json SaidOf(const AnswerNote& note) {
  json said = json::parse(note.data, nullptr, /*allow_exceptions=*/false);
  return said.is_object() ? said : json::object();
}

}  // namespace

std::string ResponseId(std::string_view name, std::string_view session) {
  return absl::StrCat(std::string(kResponsePrefix), std::string(name), "_",
                      std::string(session));
}

absl::StatusOr<ResponseName> ParseResponseId(std::string_view id) {
  if (!id.starts_with(kResponsePrefix)) return NoSuch("response", id);
  const std::string_view rest = id.substr(kResponsePrefix.size());
  const size_t end = rest.find('_');
  if (end == rest.npos) return NoSuch("response", id);
  return ResponseName{.name = std::string(rest.substr(0, end)),
                      .session = std::string(rest.substr(end + 1))};
}

absl::StatusOr<FoundResponse> FindResponse(ServerCore& core,
                                           std::string_view tenant,
                                           std::string_view id) {
  XC_ASSIGN_OR_RETURN(const ResponseName name, ParseResponseId(id));
  FoundResponse found;
  XC_ASSIGN_OR_RETURN(found.session,
                      Find(core, tenant, name.session, "response", id));
  for (AnswerNote& note : found.session.answers) {
    if (note.name != name.name) continue;
    found.note = std::move(note);
    return found;
  }
  return NoSuch("response", id);
}

absl::StatusOr<SessionInfo> FindConversation(ServerCore& core,
                                             std::string_view tenant,
                                             std::string_view id) {
  return Find(core, tenant, id, "conversation", id);
}

json InstructionsOf(const SessionInfo& session,
                    std::string_view default_system) {
  const std::string prompt = SystemPromptOf(session);
  const std::string_view said = WithoutTools(prompt);
  if (said.empty()) return nullptr;
  if (said.size() < prompt.size() && said == default_system) return nullptr;
  return std::string(said);
}

std::string_view ResponseStatus(FinishReason reason) {
  return reason == FinishReason::kMaxTokens || reason == FinishReason::kContext
             ? "incomplete"
             : "completed";
}

json ResponseObject(const json& said, std::string_view status, json output,
                    const AnswerNote* note) {
  json out = {{"object", "response"},
              {"status", std::string(status)},
              {"background", false},
              {"error", nullptr},
              {"incomplete_details", nullptr},
              {"instructions", nullptr},
              {"max_output_tokens", nullptr},
              {"conversation", nullptr},
              {"previous_response_id", nullptr},
              {"parallel_tool_calls", false},
              {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
              {"store", true},
              {"temperature", 1.0},
              {"text", {{"format", {{"type", "text"}}}}},
              {"tool_choice", "none"},
              {"tools", json::array()},
              {"top_p", 1.0},
              {"truncation", "disabled"},
              {"metadata", json::object()},
              {"usage", nullptr},
              {"output", std::move(output)}};
  out.update(said);
  if (note == nullptr) return out;
  if (status == "incomplete") {
    out["incomplete_details"] = {{"reason", "max_output_tokens"}};
  }
  out["usage"] = {
      {"input_tokens", note->prompt_tokens},
      {"input_tokens_details", {{"cached_tokens", note->reused_tokens}}},
      {"output_tokens", note->generated_tokens},
      {"output_tokens_details", {{"reasoning_tokens", 0}}},
      {"total_tokens", note->prompt_tokens + note->generated_tokens}};
  return out;
}

json StoredResponse(const FoundResponse& found,
                    std::string_view default_system) {
  const AnswerNote& note = found.note;
  json said = SaidOf(note);
  said["id"] = ResponseId(note.name, found.session.id);
  // Whether it had some is kept; what they are, the conversation says.
  said["instructions"] = said.value("instructions", json()) == true
                             ? InstructionsOf(found.session, default_system)
                             : json();
  const std::string_view status = ResponseStatus(note.finish_reason);
  const std::string& text =
      found.session.messages[note.num_messages - 1].content;
  return ResponseObject(said, status,
                        OutputObject(ReadOutput(text, said.contains("tools")),
                                     note.name, status, json::array()),
                        &note);
}

json ConversationObject(const SessionInfo& session) {
  json metadata =
      json::parse(session.data, nullptr, /*allow_exceptions=*/false);
  return {{"id", session.id},
          {"object", "conversation"},
          {"created_at", session.create_time_us / kUsPerSecond},
          {"metadata", metadata.is_object() ? metadata : json::object()}};
}

json DeletedObject(std::string_view id, std::string_view object) {
  return {{"id", std::string(id)},
          {"object", std::string(object)},
          {"deleted", true}};
}

std::vector<json> ItemsOf(const SessionInfo& session, size_t num_messages) {
  std::vector<json> items;
  std::vector<std::string> call_ids;  // of the answer before
  auto note = session.answers.begin();
  for (size_t i = 0; i < num_messages; ++i) {
    const ChatMessage& message = session.messages[i];
    while (note != session.answers.end() && note->num_messages <= i) ++note;
    const bool is_ours =
        note != session.answers.end() && note->num_messages == i + 1;
    const std::string id =
        is_ours ? note->name : absl::StrCat(i, "_", session.id);
    if (message.role == Role::kAssistant) {
      json output = OutputObject(ReadOutput(message.content, true), id,
                                 "completed", json::array());
      call_ids.clear();
      for (json& item : output) {
        if (item.contains("call_id")) call_ids.push_back(item["call_id"]);
        items.push_back(std::move(item));
      }
      continue;
    }
    const std::vector<std::string> results = ReadResults(message.content);
    if (results.empty() || results.size() > call_ids.size()) {
      items.push_back(MessageItem("msg_" + id, message));
      continue;
    }
    for (size_t k = 0; k < results.size(); ++k) {
      items.push_back({{"type", "function_call_output"},
                       {"id", absl::StrCat("fco_", id, "_", k)},
                       {"call_id", call_ids[k]},
                       {"output", results[k]},
                       {"status", "completed"}});
    }
  }
  return items;
}

absl::StatusOr<json> ListObject(std::vector<json> items,
                                const PageRequest& page) {
  if (page.descending) std::reverse(items.begin(), items.end());
  size_t begin = 0;
  if (!page.after.empty()) {
    const auto found = std::find_if(
        items.begin(), items.end(),
        [&](const json& item) { return item["id"] == page.after; });
    if (found == items.end()) {
      return JsonFieldError("after", "an item of the list", ToUtf8(page.after));
    }
    begin = static_cast<size_t>(found - items.begin()) + 1;
  }
  const size_t end =
      std::min(items.size(), begin + static_cast<size_t>(page.limit));
  json data = json::array();
  for (size_t i = begin; i < end; ++i) data.push_back(std::move(items[i]));
  json out = {{"object", "list"},
              {"first_id", nullptr},
              {"last_id", nullptr},
              {"has_more", end < items.size()}};
  if (!data.empty()) {
    out["first_id"] = data.front()["id"];
    out["last_id"] = data.back()["id"];
  }
  out["data"] = std::move(data);
  return out;
}

}  // namespace xcache
