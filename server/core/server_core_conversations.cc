// Session operations that make a conversation of another one: fork, migrate,
// export and import.
#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "server/core/cache/quality.h"
#include "server/core/reason.h"
#include "server/core/server_core_impl.h"
#include "server/core/sessions/answer_notes.h"
#include "server/core/sessions/conversation.h"
#include "server/core/sessions/document.h"
#include "server/core/tenants/take.h"

namespace xcache {
namespace {

// A conversation that the server has and the model's template does not take is
// no fault of the request's.
absl::Status AsPrecondition(const absl::Status& status) {
  if (!absl::IsInvalidArgument(status)) return status;
  return absl::FailedPreconditionError(
      absl::StrCat("the conversation does not fit this model's template: ",
                   std::string(status.message())));
}

absl::Status WithAdvice(const absl::Status& too_long, size_t num_messages) {
  if (too_long.ok()) return too_long;
  return WithReason(
      absl::InvalidArgumentError(absl::StrCat(
          std::string(too_long.message()),
          "; keep_last_messages keeps fewer of ", num_messages, " messages")),
      Reason::kContextTooLong);
}

}  // namespace

absl::Status ServerCoreImpl::MakeAnother(uint64_t num_messages,
                                         SessionRecord* record) const {
  if (num_messages > record->messages.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("session '", record->id, "' has ", record->messages.size(),
                     " messages, not ", num_messages));
  }
  if (num_messages > 0) {
    KeepFirstMessages(num_messages, record);
    // A turn is one answer, or one that replaced it.
    record->turn = std::min(record->turn, CountAnswers(*record));
  }
  record->pinned = false;
  KeepAnswerNotes(0, record);
  SetSessionData("", record);
  return absl::OkStatus();
}

absl::StatusOr<SessionInfo> ServerCoreImpl::ForkSession(
    const ForkOptions& options) {
  if (!options.new_id.empty()) {
    XC_RETURN_IF_ERROR(ValidateSessionId(options.new_id));
  }
  XC_ASSIGN_OR_RETURN(SessionRecord record,
                      sessions_.Read(options.tenant, options.id));
  XC_RETURN_IF_ERROR(MakeAnother(options.num_messages, &record));
  const size_t num_pages = record.page_keys.size();
  if (options.keep_last_messages > 0) {
    XC_RETURN_IF_ERROR(CheckModel(record));
    XC_RETURN_IF_ERROR(CheckTemplate());
    XC_RETURN_IF_ERROR(AsPrecondition(KeepMessages(
        *deps_.chat_template, LastMessages(record, options.keep_last_messages),
        &record)));
  }
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.BeginNew(options.tenant, options.new_id));
  ScalePageBytes(num_pages, &record);
  XC_ASSIGN_OR_RETURN(const SessionPlace place,
                      TakeSession(deps_.tenants, deps_.store->sessions(),
                                  options.tenant, record.page_bytes));
  record.id = lease->record().id;
  record.create_ms = lease->record().create_ms;
  if (options.keep_last_messages > 0) {
    record.turn = std::min(record.turn, CountAnswers(record));
  }
  XC_RETURN_IF_ERROR(CommitNew(*lease, record));
  return InfoOf(lease->record());
}

absl::StatusOr<MigrateResult> ServerCoreImpl::MigrateSession(
    const MigrateOptions& options) {
  XC_RETURN_IF_ERROR(CheckTemplate());
  XC_ASSIGN_OR_RETURN(
      const std::unique_ptr<SessionManager::Lease> lease,
      sessions_.Begin(options.tenant, options.id, std::nullopt));
  const SessionRecord was = lease->record();
  const bool same_model = was.model_fp == model().model_fp;
  XC_ASSIGN_OR_RETURN(
      const CodecRef codec,
      ChooseCodec(options.codec,
                  same_model ? was.codec : default_codec_->spec()));
  SessionRecord next = was;
  std::vector<size_t> kept(was.messages.size());
  std::iota(kept.begin(), kept.end(), size_t{0});
  if (options.keep_last_messages > 0) {
    kept = LastMessages(was, options.keep_last_messages);
  }
  if (!same_model) {
    next.messages.clear();
    for (const size_t i : kept) next.messages.push_back(was.messages[i]);
    XC_RETURN_IF_ERROR(WithAdvice(
        CheckBytes(TextBytes(next.messages), max_context_ - 1), kept.size()));
    XC_RETURN_IF_ERROR(AsPrecondition(Retokenize(*deps_.chat_template, &next)));
  } else if (kept.size() < was.messages.size()) {
    XC_RETURN_IF_ERROR(
        AsPrecondition(KeepMessages(*deps_.chat_template, kept, &next)));
  }
  // They count the messages that came before.
  if (kept.size() < was.messages.size()) KeepAnswerNotes(0, &next);
  if (codec->cache_fp() != was.cache_fp) next.page_keys.clear();
  ScalePageBytes(was.page_keys.size(), &next);
  next.codec = std::string(codec->spec());
  next.cache_fp = codec->cache_fp();
  next.model_fp = model().model_fp;
  MigrateResult result;
  result.retokenized = !same_model;
  result.tokens_before = was.tokens.size();
  result.tokens_after = next.tokens.size();
  result.messages_dropped = was.messages.size() - next.messages.size();
  if (next != was) {
    next.numerics_id = model().numerics_id;
    XC_RETURN_IF_ERROR(WithAdvice(
        CheckHistory("the conversation", next.tokens.size()), kept.size()));
    XC_ASSIGN_OR_RETURN(const Committed committed, lease->Commit(next));
    // The rows that are in memory are of the tokens that it had.
    scheduler_.DropSession(lease->key(), {});
    XC_LOG_INFO("session migrated",
                "id={} from_model={} to_model={} from_codec={} to_codec={} "
                "tokens_before={} tokens_after={} messages_dropped={} "
                "durability={}",
                LogValue(next.id), ToHex(was.model_fp), ToHex(next.model_fp),
                LogValue(was.codec), LogValue(next.codec), result.tokens_before,
                result.tokens_after, result.messages_dropped,
                DurabilityName(committed.durability));
  }
  result.session = InfoOf(lease->record());
  return result;
}

absl::StatusOr<std::string> ServerCoreImpl::ExportSession(
    std::string_view tenant, std::string_view id, bool text_only) {
  XC_ASSIGN_OR_RETURN(const SessionRecord record, sessions_.Read(tenant, id));
  return WriteSessionDocument(record, !text_only);
}

absl::StatusOr<SessionInfo> ServerCoreImpl::ImportSession(
    const ImportOptions& options) {
  XC_RETURN_IF_ERROR(CheckTemplate());
  XC_ASSIGN_OR_RETURN(SessionRecord record,
                      ParseSessionDocument(options.document));
  if (!options.id.empty()) record.id = options.id;
  if (!record.id.empty()) XC_RETURN_IF_ERROR(ValidateSessionId(record.id));
  SessionUpdate settings;
  settings.title = record.title;
  settings.ttl = std::chrono::milliseconds(record.ttl_ms);
  XC_RETURN_IF_ERROR(CheckUpdate(settings));
  const bool same_model = record.model_fp == model().model_fp;
  if (same_model) {
    for (const TokenId token : record.tokens) {
      if (token < model().vocab_size) continue;
      return absl::InvalidArgumentError(absl::StrCat("document: token id ",
                                                     token, " is not in [0, ",
                                                     model().vocab_size, ")"));
    }
  }
  XC_RETURN_IF_ERROR(deps_.chat_template->CheckOrder({}, MessagesOf(record)));
  // Tokens that are not what this model makes of the text, wherever they come
  // from, are no loss: the text is what counts.
  if (!same_model ||
      !TokensMatchText(*deps_.chat_template, *deps_.tokenizer, record)) {
    XC_RETURN_IF_ERROR(
        CheckBytes(TextBytes(record.messages), max_context_ - 1));
    XC_RETURN_IF_ERROR(Retokenize(*deps_.chat_template, &record));
  }
  XC_RETURN_IF_ERROR(CheckHistory("the conversation", record.tokens.size()));
  XC_ASSIGN_OR_RETURN(
      const CodecRef codec,
      ChooseCodec(options.codec, same_model && !record.codec.empty()
                                     ? record.codec
                                     : default_codec_->spec()));
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<SessionManager::Lease> lease,
                      sessions_.BeginNew(options.tenant, record.id));
  XC_ASSIGN_OR_RETURN(const SessionPlace place,
                      TakeSession(deps_.tenants, deps_.store->sessions(),
                                  options.tenant, /*page_bytes=*/0));
  record.tenant = lease->record().tenant;
  record.id = lease->record().id;
  record.create_ms = std::min(record.create_ms, lease->record().create_ms);
  record.codec = std::string(codec->spec());
  record.cache_fp = codec->cache_fp();
  record.model_fp = model().model_fp;
  record.numerics_id = model().numerics_id;
  XC_RETURN_IF_ERROR(CommitNew(*lease, record));
  return InfoOf(lease->record());
}

}  // namespace xcache
