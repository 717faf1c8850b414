// Turns of chats: what each goes on from, its prompt, and the answers in it
// that are known.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/sampler.h"
#include "server/core/reason.h"
#include "server/core/server_core_impl.h"
#include "server/core/sessions/answer_notes.h"
#include "server/core/sessions/conversation.h"
#include "server/core/sessions/penalty_history.h"

namespace xcache {
namespace {

// Appends the tokens of a request's new messages, which come after `place`, and
// says where that leads (ActiveRequest::answer_place). Answers are what they
// were made of, where `known` knows them. Returns whether one was.
absl::StatusOr<bool> RenderNew(const ChatTemplate& chat_template,
                               KnownAnswers* known,
                               std::span<const ChatMessage> messages,
                               Digest place, ActiveRequest* active) {
  std::vector<TokenId>& tokens = active->tokens;
  bool found = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const size_t begin = tokens.size();
    std::optional<std::vector<TokenId>> answer;
    if (known != nullptr && message.role == Role::kAssistant) {
      answer = known->Find(place, message.content);
    }
    if (answer.has_value()) {
      found = true;
      tokens.insert(tokens.end(), answer->begin(), answer->end());
      active->new_messages.push_back(
          {.role = static_cast<uint8_t>(message.role),
           .content = message.content,
           .token_begin = static_cast<uint32_t>(begin),
           .token_end = static_cast<uint32_t>(tokens.size())});
    } else {
      XC_RETURN_IF_ERROR(Render(chat_template, messages.subspan(i, 1),
                                active->kept_messages + i, &tokens,
                                &active->new_messages));
    }
    place = KnownAnswers::After(place, std::span(tokens).subspan(begin));
  }
  active->answer_place = place;
  return found;
}

}  // namespace

absl::StatusOr<SessionRecord> ServerCoreImpl::BaseOf(ActiveRequest& active,
                                                     const ChatTurn& turn) {
  SessionRecord base = BlankRecord();
  if (turn.keep == TurnKeep::kInPlace) {
    if (turn.session_id.empty()) return base;
    XC_ASSIGN_OR_RETURN(
        active.lease,
        sessions_.Begin(turn.tenant, turn.session_id, turn.expected_turn));
    base = active.lease->record();
    XC_RETURN_IF_ERROR(CheckModel(base));
    XC_ASSIGN_OR_RETURN(const uint64_t end, EndOfAnswer(base, turn.after));
    if (end == base.messages.size()) return base;
    return WithReason(absl::AbortedError(absl::StrCat(
                          "session '", base.id, "' has ", base.messages.size(),
                          " messages, not the ", end, " up to that answer")),
                      Reason::kTurnConflict);
  }
  if (!turn.session_id.empty()) {
    XC_ASSIGN_OR_RETURN(base, sessions_.Read(turn.tenant, turn.session_id));
    XC_RETURN_IF_ERROR(CheckModel(base));
    XC_ASSIGN_OR_RETURN(const uint64_t end, EndOfAnswer(base, turn.after));
    XC_RETURN_IF_ERROR(MakeAnother(end, &base));
  }
  if (turn.keep == TurnKeep::kNew) {
    XC_ASSIGN_OR_RETURN(active.lease,
                        sessions_.BeginNew(turn.tenant, turn.new_session_id,
                                           /*is_random=*/true));
    XC_ASSIGN_OR_RETURN(active.place,
                        TakeSession(deps_.tenants, deps_.store->sessions(),
                                    turn.tenant, base.page_bytes));
  }
  return base;
}

absl::Status ServerCoreImpl::RenderTurn(
    ActiveRequest& active, const SessionRecord& base,
    const std::vector<ChatMessage>& messages) {
  const ChatTemplate& chat_template = *deps_.chat_template;
  std::vector<TokenId>& tokens = active.tokens;
  const std::vector<TokenId> header = chat_template.AssistantHeader();
  const size_t begin = tokens.size();
  Digest begin_place = KnownAnswers::Begin(active.base.tenant);
  for (const SessionMessage& message :
       std::span(base.messages).first(active.kept_messages)) {
    begin_place = KnownAnswers::After(
        begin_place,
        std::span(tokens).subspan(message.token_begin,
                                  message.token_end - message.token_begin));
  }
  const bool knows = !active.options.no_cache;
  XC_ASSIGN_OR_RETURN(
      const bool found,
      RenderNew(chat_template, knows ? &known_answers_ : nullptr, messages,
                begin_place, &active));
  // What was thought may be long. A client that does not say how much is to
  // come gets a token at least.
  const int64_t asked = active.options.max_tokens;
  const int64_t room = asked < max_context_ ? asked : 1;
  if (found && std::ssize(tokens) + std::ssize(header) + room > max_context_) {
    tokens.resize(begin);
    active.new_messages.clear();
    XC_RETURN_IF_ERROR(
        RenderNew(chat_template, nullptr, messages, begin_place, &active)
            .status());
  }
  tokens.insert(tokens.end(), header.begin(), header.end());
  if (knows) active.known_answers = &known_answers_;
  return absl::OkStatus();
}

absl::Status ServerCoreImpl::PrepareChat(ActiveRequest& active, ChatTurn turn) {
  XC_RETURN_IF_ERROR(CheckTemplate());
  if (turn.regenerate) {
    if (turn.session_id.empty() || turn.keep != TurnKeep::kInPlace ||
        !turn.messages.empty()) {
      return absl::InvalidArgumentError(
          "regenerate takes a session and no messages");
    }
  } else if (turn.messages.empty() ||
             turn.messages.back().role != Role::kUser) {
    return absl::InvalidArgumentError(
        "a chat turn has messages, and the last one is the user's");
  }
  const size_t system_bytes =
      absl::StripAsciiWhitespace(turn.system_prompt.value_or("")).size();
  XC_RETURN_IF_ERROR(
      CheckBytes(system_bytes + TextBytes(turn.messages), max_context_ - 1));
  if ((turn.session_id.empty() || turn.keep != TurnKeep::kInPlace) &&
      (turn.expected_turn.has_value() || turn.keep_partial)) {
    return absl::InvalidArgumentError(
        "expected_turn and keep_partial need a session");
  }
  XC_ASSIGN_OR_RETURN(SessionRecord base, BaseOf(active, turn));
  if (turn.system_prompt.has_value()) {
    XC_RETURN_IF_ERROR(
        ReplaceSystemPrompt(*deps_.chat_template, *turn.system_prompt, &base));
  }
  std::vector<Role> roles;
  for (const SessionMessage& message : base.messages) {
    roles.push_back(static_cast<Role>(message.role));
  }
  size_t num_tokens = base.tokens.size();
  if (turn.regenerate) {
    if (!roles.empty() && roles.back() == Role::kAssistant) roles.pop_back();
    if (roles.empty() || roles.back() != Role::kUser) {
      return absl::FailedPreconditionError(absl::StrCat(
          "session '", base.id, "' has no user's message to answer again"));
    }
    num_tokens = base.messages[roles.size() - 1].token_end;
  }
  active.kept_messages = roles.size();
  active.keep_partial = turn.keep_partial;
  active.note = std::move(turn.note);
  active.tokens.assign(
      base.tokens.begin(),
      base.tokens.begin() + static_cast<ptrdiff_t>(num_tokens));
  active.codec_spec = base.codec;
  active.remat = RematPolicyOf(base);
  if (codecs_.Find(base.codec) == nullptr) {
    // Here, so that nobody else waits for it. What is wrong with the codec
    // shows when the turn is admitted.
    deps_.engine->PrepareCodec(base.codec, {}).IgnoreError();
  }
  XC_RETURN_IF_ERROR(deps_.chat_template->CheckOrder(roles, turn.messages));
  XC_RETURN_IF_ERROR(RenderTurn(active, base, turn.messages));
  if (HasPenalty(active.options.sampling)) {
    active.penalty_history = PenaltyHistory(
        *deps_.chat_template, active.tokens,
        std::span(base.messages).first(active.kept_messages),
        active.new_messages,
        static_cast<size_t>(active.options.sampling.penalty_last_n));
  }
  if (turn.keep == TurnKeep::kNew ||
      (active.lease != nullptr && turn.system_prompt.has_value())) {
    active.lease->StartFrom(std::move(base));
  }
  return absl::OkStatus();
}

void ServerCoreImpl::SubmitChat(ChatTurn turn,
                                std::shared_ptr<RequestSink> sink) {
  const std::shared_ptr<ActiveRequest> active =
      NewRequest(RequestKind::kChat, turn, std::move(sink));
  absl::Status status = SetOptions(*active, std::move(turn.options));
  if (status.ok()) status = PrepareChat(*active, std::move(turn));
  if (status.ok()) status = CheckPrompt(*active);
  active->prompt_tokens = static_cast<int64_t>(active->tokens.size());
  active->final.prompt_tokens = active->tokens.size();
  if (!status.ok()) {
    scheduler_.Refuse(*active, status);
    return;
  }
  // The store is asked while the prompt is computed.
  const std::shared_ptr<SessionManager::Check> check =
      active->lease != nullptr ? active->lease->check() : nullptr;
  scheduler_.Submit(active);
  if (check != nullptr) check->Run();
}

}  // namespace xcache
