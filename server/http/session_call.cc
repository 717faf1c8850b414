#include "server/http/session_call.h"

#include <chrono>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "engine/base/status_macros.h"
#include "engine/types.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/responses_request.h"
#include "server/http/stored_responses.h"

namespace xcache {

using nlohmann::json;

namespace {

constexpr int64_t kUsPerSecond = 1'000'000;

json SecondsOrNull(int64_t us) {
  return us == 0 ? json() : json(us / kUsPerSecond);
}

}  // namespace

absl::StatusOr<SessionUpdate> ToSessionUpdate(const json& body) {
  SessionUpdate out;
  if (Find(body, "title") != nullptr) {
    XC_RETURN_IF_ERROR(ReadString(body, "title", &out.title.emplace()));
  }
  if (Find(body, "pinned") != nullptr) {
    XC_RETURN_IF_ERROR(ReadBool(body, "pinned", &out.pinned.emplace()));
  }
  std::optional<int64_t> ttl;
  XC_RETURN_IF_ERROR(ReadInt(body, "ttl_seconds", 0, kMaxJsonInt, &ttl));
  if (ttl.has_value()) out.ttl = std::chrono::seconds(*ttl);
  if (out.title.has_value() || out.pinned.has_value() || out.ttl.has_value()) {
    return out;
  }
  return absl::InvalidArgumentError(
      "the body has nothing to change: expected title, pinned or ttl_seconds");
}

absl::StatusOr<ForkOptions> ToForkOptions(const json& body) {
  ForkOptions out;
  XC_RETURN_IF_ERROR(ReadString(body, "id", &out.new_id));
  std::optional<int64_t> number;
  XC_RETURN_IF_ERROR(ReadInt(body, "num_messages", 0, kMaxJsonInt, &number));
  out.num_messages = static_cast<uint64_t>(number.value_or(0));
  number.reset();
  XC_RETURN_IF_ERROR(
      ReadInt(body, "keep_last_messages", 0, kMaxJsonInt, &number));
  out.keep_last_messages = static_cast<uint64_t>(number.value_or(0));
  return out;
}

json SessionObject(const SessionInfo& session,
                   int64_t kv_fp16_bytes_per_token) {
  const auto paged_tokens =
      static_cast<int64_t>(session.num_pages) * int64_t{kBlockTokens};
  return {{"id", session.id},
          {"object", "xcache.session"},
          {"title", session.title},
          {"turn", session.turn},
          {"num_tokens", session.num_tokens},
          {"num_messages", session.num_messages},
          {"codec", session.codec},
          {"pinned", session.pinned},
          {"created_at", session.create_time_us / kUsPerSecond},
          {"updated_at", session.update_time_us / kUsPerSecond},
          {"expires_at", SecondsOrNull(session.expire_time_us)},
          {"page_bytes", session.page_bytes},
          {"kv_fp16_bytes", paged_tokens * kv_fp16_bytes_per_token},
          {"in_memory", session.in_memory},
          {"needs_migration", session.needs_migration},
          {"durability", std::string(DurabilityName(session.durability))}};
}

WorkClass SessionCall::work() const {
  return method_ == Method::kGetSession ? WorkClass::kLookup
                                        : WorkClass::kStore;
}

absl::Status SessionCall::Submit() {
  XC_ASSIGN_OR_RETURN(const json answer, Answer());
  call_.Close(absl::OkStatus(), 0, "");
  RespondJson(answer);
  return absl::OkStatus();
}

absl::StatusOr<json> SessionCall::Answer() {
  switch (method_) {
    case Method::kListSessions:
      return List();
    case Method::kUpdateSession:
      return Update();
    case Method::kForkSession:
      return Fork();
    case Method::kDeleteSession:
      XC_RETURN_IF_ERROR(call_.core().DeleteSession(call_.tenant(), id_));
      return DeletedObject(id_, "xcache.session.deleted");
    default: {
      XC_ASSIGN_OR_RETURN(const SessionInfo session,
                          call_.core().GetSession(call_.tenant(), id_,
                                                  /*with_messages=*/false));
      return Object(session);
    }
  }
}

absl::StatusOr<json> SessionCall::List() {
  XC_ASSIGN_OR_RETURN(const PageRequest page,
                      ToPageRequest(exchange_->head.query));
  XC_ASSIGN_OR_RETURN(
      const SessionList list,
      call_.core().ListSessions(call_.tenant(), page.limit, page.after));
  json data = json::array();
  for (const SessionInfo& session : list.sessions) {
    data.push_back(Object(session));
  }
  return json{
      {"object", "list"},
      {"data", std::move(data)},
      {"has_more", !list.next_page_token.empty()},
      {"next",
       list.next_page_token.empty() ? json() : json(list.next_page_token)}};
}

absl::StatusOr<json> SessionCall::Update() {
  SessionUpdate update;
  {
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    XC_ASSIGN_OR_RETURN(update, ToSessionUpdate(body.json));
  }
  XC_ASSIGN_OR_RETURN(const SessionInfo session,
                      call_.core().UpdateSession(call_.tenant(), id_, update));
  return Object(session);
}

absl::StatusOr<json> SessionCall::Fork() {
  ForkOptions options;
  {
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    XC_ASSIGN_OR_RETURN(options, ToForkOptions(body.json));
  }
  options.tenant = call_.tenant();
  options.id = id_;
  XC_ASSIGN_OR_RETURN(const SessionInfo session,
                      call_.core().ForkSession(options));
  return Object(session);
}

json SessionCall::Object(const SessionInfo& session) const {
  return SessionObject(session, call_.core().model().kv_fp16_bytes_per_token);
}

}  // namespace xcache
