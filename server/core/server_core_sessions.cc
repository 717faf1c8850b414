// Session operations: create, read, list, delete, update, flush. What makes
// another conversation of one is in server_core_conversations.cc.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/field_error.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/core/cache/quality.h"
#include "server/core/reason.h"
#include "server/core/server_core_impl.h"
#include "server/core/sessions/answer_notes.h"
#include "server/core/sessions/conversation.h"
#include "server/core/sessions/remat_setting.h"
#include "server/core/tenants/take.h"

namespace xcache {
namespace {

constexpr size_t kMaxTitleBytes = 256;
constexpr size_t kMaxCodecBytes = 256;
// A hundred years: what any clock of ours still holds.
constexpr std::chrono::seconds kMaxTtl = std::chrono::hours(24) * 36525;
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
  info.num_pages = summary.num_pages;
  info.page_bytes = PageBytes(summary.codec, summary.num_pages);
  info.in_memory = scheduler_.InMemory({summary.tenant, summary.id});
  info.title = summary.title;
  info.model_fp = summary.model_fp;
  info.needs_migration =
      !summary.damaged && summary.model_fp != model().model_fp;
  info.durability = summary.durability;
  return info;
}

SessionInfo ServerCoreImpl::InfoOf(const SessionRecord& record) const {
  SessionSummary summary = SummaryOf(record);
  summary.durability = deps_.store->sessions().DurabilityOf(record);
  SessionInfo info = InfoOf(summary);
  info.remat = std::string(RematPolicyName(RematPolicyOf(record)));
  info.retokenized = IsRetokenized(record);
  const CodecRef codec = codecs_.Find(record.codec);
  if (codec != nullptr && codec->cache_fp() != record.cache_fp) {
    info.needs_migration = true;
  }
  info.messages = MessagesOf(record);
  info.answers = AnswerNotesOf(record);
  info.data = SessionDataOf(record);
  return info;
}

absl::Status ServerCoreImpl::CommitNew(SessionManager::Lease& lease,
                                       const SessionRecord& record) {
  XC_RETURN_IF_ERROR(lease.Commit(record).status());
  metrics_.Add(CounterOf(RematPolicyOf(record)), 1);
  return absl::OkStatus();
}

absl::StatusOr<CodecRef> ServerCoreImpl::ChooseCodec(
    const std::string& choice, std::string_view fallback) {
  if (choice.size() > kMaxCodecBytes) {
    return FieldError("codec",
                      absl::StrCat("at most ", kMaxCodecBytes, " bytes"),
                      choice.size());
  }
  return scheduler_.OpenCodec(choice.empty() ? std::string(fallback)
                                             : CodecOfChoice(choice, model()));
}

absl::Status ServerCoreImpl::CheckHistory(std::string_view what,
                                          size_t num_tokens) const {
  const auto n = static_cast<int64_t>(num_tokens);
  if (n < max_context_) return absl::OkStatus();
  return WithReason(absl::InvalidArgumentError(
                        absl::StrCat(std::string(what), " is too long: ", n,
                                     " tokens of at most ", max_context_ - 1)),
                    Reason::kContextTooLong);
}

absl::Status ServerCoreImpl::CheckUpdate(const SessionUpdate& update) const {
  if (update.title.has_value()) {
    if (update.title->size() > kMaxTitleBytes) {
      return FieldError("title",
                        absl::StrCat("at most ", kMaxTitleBytes, " bytes"),
                        update.title->size());
    }
    if (!IsUtf8(*update.title)) {
      return FieldError("title", "UTF-8", "other bytes");
    }
  }
  if (update.data.value_or("").size() > kMaxSessionDataBytes) {
    return FieldError("data",
                      absl::StrCat("at most ", kMaxSessionDataBytes, " bytes"),
                      update.data->size());
  }
  if (update.ttl.has_value() &&
      (update.ttl->count() < 0 || *update.ttl > kMaxTtl)) {
    return FieldError("ttl", absl::StrCat("0 to ", kMaxTtl.count(), " seconds"),
                      absl::StrFormat("%.3f", 1e-3 * static_cast<double>(
                                                         update.ttl->count())));
  }
  return absl::OkStatus();
}

absl::StatusOr<SessionInfo> ServerCoreImpl::CreateSession(
    const CreateSessionOptions& options) {
  if (!options.id.empty()) XC_RETURN_IF_ERROR(ValidateSessionId(options.id));
  SessionUpdate settings;
  settings.title = options.title;
  settings.ttl = options.ttl;
  settings.data = options.data;
  XC_RETURN_IF_ERROR(CheckUpdate(settings));
  RematPolicy remat = options_.default_remat;
  if (!options.remat.empty()) {
    XC_ASSIGN_OR_RETURN(remat, ParseRematPolicy(options.remat));
  }
  XC_RETURN_IF_ERROR(CheckTemplate());
  std::vector<ChatMessage> messages = options.messages;
  if (!options.system_prompt.empty()) {
    messages.insert(messages.begin(),
                    {.role = Role::kSystem, .content = options.system_prompt});
  }
  XC_RETURN_IF_ERROR(CheckBytes(TextBytes(messages), max_context_ - 1));
  XC_ASSIGN_OR_RETURN(const CodecRef codec,
                      ChooseCodec(options.codec, default_codec_->spec()));
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.BeginNew(options.tenant, options.id));
  XC_ASSIGN_OR_RETURN(const SessionPlace place,
                      TakeSession(deps_.tenants, deps_.store->sessions(),
                                  options.tenant, /*page_bytes=*/0));
  SessionRecord record = BlankRecord();
  record.tenant = lease->record().tenant;
  record.id = lease->record().id;
  record.create_ms = lease->record().create_ms;
  record.title = options.title;
  if (options.ttl.has_value()) record.ttl_ms = options.ttl->count();
  record.codec = std::string(codec->spec());
  record.cache_fp = codec->cache_fp();
  SetRemat(remat, &record.settings);
  SetSessionData(options.data, &record);
  if (!messages.empty()) {
    XC_RETURN_IF_ERROR(deps_.chat_template->CheckOrder({}, messages));
    XC_RETURN_IF_ERROR(Render(*deps_.chat_template, messages, 0, &record.tokens,
                              &record.messages));
    XC_RETURN_IF_ERROR(CheckHistory(
        options.messages.empty() ? "the system prompt" : "the conversation",
        record.tokens.size()));
    if (CountAnswers(record) > 0) MarkRetokenized(&record);
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
  if (!with_messages) {
    info.messages.clear();
    info.answers.clear();
  }
  return info;
}

absl::StatusOr<SessionList> ServerCoreImpl::ListSessions(
    std::string_view tenant, int page_size, std::string_view page_token) {
  if (page_size < 0 || page_size > kMaxPageSize) {
    return FieldError("page_size", absl::StrCat("in [0, ", kMaxPageSize, "]"),
                      page_size);
  }
  XC_ASSIGN_OR_RETURN(
      SessionPage page,
      sessions_.List(tenant, page_token,
                     page_size == 0 ? kDefaultPageSize : page_size));
  SessionList list;
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

absl::Status ServerCoreImpl::ForgetAnswer(std::string_view tenant,
                                          std::string_view id,
                                          std::string_view name, bool cut) {
  XC_ASSIGN_OR_RETURN(const SessionRecord before, sessions_.Read(tenant, id));
  XC_RETURN_IF_ERROR(EndOfAnswer(before, name).status());
  SessionUpdate update;
  update.forget.emplace_back(name);
  update.cut = cut;
  XC_ASSIGN_OR_RETURN(const SessionRecord after,
                      sessions_.Update(tenant, id, update));
  if (!after.messages.empty()) return absl::OkStatus();
  return sessions_.DeleteIfEmpty(tenant, id);
}

SessionRecord ServerCoreImpl::BlankRecord() const {
  SessionRecord record;
  record.ttl_ms = options_.default_ttl.count();
  record.codec = std::string(default_codec_->spec());
  record.cache_fp = default_codec_->cache_fp();
  record.model_fp = model().model_fp;
  record.numerics_id = model().numerics_id;
  return record;
}

absl::StatusOr<SessionInfo> ServerCoreImpl::UpdateSession(
    std::string_view tenant, std::string_view id, const SessionUpdate& update) {
  XC_RETURN_IF_ERROR(CheckUpdate(update));
  XC_ASSIGN_OR_RETURN(const SessionRecord record,
                      sessions_.Update(tenant, id, update));
  return InfoOf(record);
}

absl::StatusOr<FlushResult> ServerCoreImpl::FlushSession(
    std::string_view tenant, std::string_view id) {
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.Begin(tenant, id, std::nullopt));
  const SessionRecord& record = lease->record();
  scheduler_.DropSession(lease->key(), record.page_keys);
  const PageStoreStats before = deps_.store->stats().tier(PageTier::kDisk);
  XC_RETURN_IF_ERROR(deps_.store->Flush());
  const PageStoreStats after = deps_.store->stats().tier(PageTier::kDisk);
  XC_ASSIGN_OR_RETURN(const Committed committed, lease->Commit(record));
  if (!committed.why.ok()) return committed.why;
  deps_.store->DropFromHost(lease->record().page_keys);
  // Pages are written soon after they are sealed, so few are left to write now;
  // other sessions' among them.
  FlushResult result;
  result.pages_written = static_cast<uint64_t>(after.puts - before.puts);
  result.bytes_written =
      static_cast<uint64_t>(after.put_bytes - before.put_bytes);
  return result;
}

}  // namespace xcache
