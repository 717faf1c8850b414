// Session operations: create, read, list, delete, fork, pin, flush.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/core/quality.h"
#include "server/core/reason.h"
#include "server/core/remat_setting.h"
#include "server/core/server_core_impl.h"

namespace xcache {
namespace {

constexpr size_t kMaxTitleBytes = 256;
constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 1000;

}  // namespace

uint64_t ServerCoreImpl::PageBytes(std::string_view codec,
                                   uint64_t num_pages) const {
  // A codec that was not opened since the start has no known page size yet.
  return num_pages * codecs_.PageBytes(codec);
}

RematPolicy ServerCoreImpl::RematPolicyOf(const SessionRecord& record) const {
  return RematOf(record.settings).value_or(options_.default_remat);
}

SessionInfo ServerCoreImpl::InfoOf(const SessionSummary& summary) const {
  SessionInfo info;
  info.id = summary.id;
  info.turn = summary.turn;
  info.num_tokens = summary.num_tokens;
  info.num_messages = summary.num_messages;
  info.codec = summary.codec;
  info.pinned = summary.pinned;
  info.create_time_us = summary.create_ms * 1000;
  info.update_time_us = summary.update_ms * 1000;
  info.expire_time_us = summary.pinned ? 0 : summary.expire_ms * 1000;
  info.page_bytes = PageBytes(summary.codec, summary.num_pages);
  info.in_memory = scheduler_.InMemory({summary.tenant, summary.id});
  info.title = summary.title;
  return info;
}

SessionInfo ServerCoreImpl::InfoOf(const SessionRecord& record) const {
  SessionSummary summary;
  summary.tenant = record.tenant;
  summary.id = record.id;
  summary.title = record.title;
  summary.codec = record.codec;
  summary.create_ms = record.create_ms;
  summary.update_ms = record.update_ms;
  summary.expire_ms = record.expire_ms;
  summary.turn = record.turn;
  summary.num_tokens = record.tokens.size();
  summary.num_messages = record.messages.size();
  summary.num_pages = record.page_keys.size();
  summary.pinned = record.pinned;
  SessionInfo info = InfoOf(summary);
  info.remat = std::string(RematPolicyName(RematPolicyOf(record)));
  for (const SessionMessage& message : record.messages) {
    info.messages.push_back(
        {.role = static_cast<Role>(message.role), .content = message.content});
  }
  return info;
}

// A session that cannot be written now is there all the same: in memory, and
// written when the disk takes it.
absl::Status ServerCoreImpl::CommitNew(SessionManager::Lease& lease,
                                       const SessionRecord& record) {
  const absl::Status status = lease.Commit(record);
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    XC_LOG_WARN("session not durable", "id={} why={}", LogValue(record.id),
                LogValue(std::string(status.message())));
  } else if (!status.ok()) {
    return status;
  }
  scheduler_.CountRemat(RematPolicyOf(record));
  return absl::OkStatus();
}

absl::StatusOr<SessionInfo> ServerCoreImpl::CreateSession(
    const CreateSessionOptions& options) {
  const std::string id = options.id.empty() ? MakeSessionId() : options.id;
  XC_RETURN_IF_ERROR(ValidateSessionId(id));
  if (options.title.size() > kMaxTitleBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a title has at most ", kMaxTitleBytes, " bytes, not ",
                     options.title.size()));
  }
  if (options.ttl.has_value() && options.ttl->count() < 0) {
    return absl::InvalidArgumentError("ttl is not negative");
  }
  RematPolicy remat = options_.default_remat;
  if (!options.remat.empty()) {
    XC_ASSIGN_OR_RETURN(remat, ParseRematPolicy(options.remat));
  }
  if (deps_.chat_template == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no chat template"),
        Reason::kNoChatTemplate);
  }
  XC_RETURN_IF_ERROR(
      CheckBytes(absl::StripAsciiWhitespace(options.system_prompt).size(),
                 max_context_ - 1));
  CodecRef codec = default_codec_;
  if (!options.codec.empty()) {
    XC_ASSIGN_OR_RETURN(
        codec, scheduler_.OpenCodec(CodecOfChoice(options.codec, model())));
  }
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.BeginNew(options.tenant, id));
  SessionRecord record = lease->record();
  record.title = options.title;
  record.ttl_ms = options.ttl.value_or(options_.default_ttl).count();
  record.codec = std::string(codec->spec());
  record.cache_fp = codec->cache_fp();
  record.model_fp = model().model_fp;
  record.numerics_id = model().numerics_id;
  SetRemat(remat, &record.settings);
  if (!options.system_prompt.empty()) {
    const std::vector<ChatMessage> system = {
        {.role = Role::kSystem, .content = options.system_prompt}};
    XC_RETURN_IF_ERROR(deps_.chat_template->CheckOrder({}, system));
    XC_RETURN_IF_ERROR(Render(system, 0, &record.tokens, &record.messages));
    const auto n = static_cast<int64_t>(record.tokens.size());
    if (n >= max_context_) {
      return WithReason(absl::InvalidArgumentError(absl::StrCat(
                            "the system prompt is too long: ", n,
                            " tokens of at most ", max_context_ - 1)),
                        Reason::kContextTooLong);
    }
  }
  XC_RETURN_IF_ERROR(CommitNew(*lease, record));
  return InfoOf(lease->record());
}

absl::StatusOr<SessionInfo> ServerCoreImpl::GetSession(std::string_view tenant,
                                                       std::string_view id,
                                                       bool with_messages) {
  absl::StatusOr<SessionRecord> record = sessions_.Read(tenant, id);
  if (with_messages && !record.ok()) return record.status();
  if (!record.ok()) {
    // Of one that cannot be read there is what the index knows.
    XC_ASSIGN_OR_RETURN(const SessionSummary summary,
                        sessions_.Find(tenant, id));
    return InfoOf(summary);
  }
  SessionInfo info = InfoOf(*record);
  if (!with_messages) info.messages.clear();
  return info;
}

absl::StatusOr<SessionListPage> ServerCoreImpl::ListSessions(
    std::string_view tenant, int page_size, std::string_view page_token) {
  const int limit =
      page_size <= 0 ? kDefaultPageSize : std::min(page_size, kMaxPageSize);
  XC_ASSIGN_OR_RETURN(SessionPage page,
                      sessions_.List(tenant, page_token, limit));
  SessionListPage list;
  list.next_page_token = std::move(page.next_page_token);
  for (const SessionSummary& summary : page.sessions) {
    list.sessions.push_back(InfoOf(summary));
  }
  return list;
}

absl::Status ServerCoreImpl::DeleteSession(std::string_view tenant,
                                           std::string_view id) {
  const absl::Status status = sessions_.Delete(tenant, id);
  scheduler_.DropSession(SessionKey(tenant, id), {});
  return status;
}

absl::StatusOr<SessionInfo> ServerCoreImpl::ForkSession(std::string_view tenant,
                                                        std::string_view id,
                                                        std::string_view new_id,
                                                        uint64_t num_messages) {
  const std::string fork_id =
      new_id.empty() ? MakeSessionId() : std::string(new_id);
  XC_RETURN_IF_ERROR(ValidateSessionId(fork_id));
  XC_ASSIGN_OR_RETURN(const SessionRecord source, sessions_.Read(tenant, id));
  if (num_messages > source.messages.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("session '", source.id, "' has ", source.messages.size(),
                     " messages, not ", num_messages));
  }
  const size_t kept = num_messages == 0 ? source.messages.size() : num_messages;
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.BeginNew(tenant, fork_id));
  SessionRecord record = source;
  record.id = fork_id;
  record.create_ms = lease->record().create_ms;
  record.pinned = false;
  record.messages.resize(kept);
  record.tokens.resize(kept == 0 ? 0 : record.messages.back().token_end);
  record.page_keys.resize(
      std::min(record.page_keys.size(), record.tokens.size() / kBlockTokens));
  // A turn is one answer.
  record.turn = static_cast<uint64_t>(std::count_if(
      record.messages.begin(), record.messages.end(),
      [](const SessionMessage& message) {
        return message.role == static_cast<uint8_t>(Role::kAssistant);
      }));
  record.turn = std::min(record.turn, source.turn);
  XC_RETURN_IF_ERROR(CommitNew(*lease, record));
  return InfoOf(lease->record());
}

absl::StatusOr<SessionInfo> ServerCoreImpl::SetPinned(std::string_view tenant,
                                                      std::string_view id,
                                                      bool pinned) {
  XC_ASSIGN_OR_RETURN(const SessionRecord record,
                      sessions_.SetPinned(tenant, id, pinned));
  return InfoOf(record);
}

absl::StatusOr<FlushResult> ServerCoreImpl::FlushSession(
    std::string_view tenant, std::string_view id) {
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.Begin(tenant, id, std::nullopt));
  const SessionRecord& record = lease->record();
  scheduler_.DropSession(lease->key(), record.page_keys);
  const SpillStats before = deps_.store->stats().spill;
  XC_RETURN_IF_ERROR(deps_.store->Flush());
  const SpillStats after = deps_.store->stats().spill;
  XC_RETURN_IF_ERROR(lease->Commit(record));
  deps_.store->DropFromHost(lease->record().page_keys);
  // Pages are written soon after they are sealed, so few are left to write now;
  // other sessions' among them.
  FlushResult result;
  result.pages_written =
      static_cast<uint64_t>(after.spilled_pages - before.spilled_pages);
  result.bytes_written =
      static_cast<uint64_t>(after.spilled_bytes - before.spilled_bytes);
  return result;
}

}  // namespace xcache
