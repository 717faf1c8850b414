#include "client/xcache_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/connection.h"
#include "client/convert.h"
#include "engine/base/status_macros.h"

namespace xcache::client {

Client::Client(std::unique_ptr<Connection> connection)
    : connection_(std::move(connection)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(
    const ClientOptions& options) {
  XC_ASSIGN_OR_RETURN(std::unique_ptr<Connection> connection,
                      Connection::Open(options));
  return std::unique_ptr<Client>(new Client(std::move(connection)));
}

absl::StatusOr<Readiness> Client::CheckReady() {
  absl::Status why;
  XC_ASSIGN_OR_RETURN(const Progress now, connection_->Look(&why));
  return now.readiness;
}

absl::Status Client::WaitReady(
    absl::Duration timeout, absl::Duration unreachable_timeout,
    const std::function<bool(const Progress&)>& progress) {
  const absl::Time start = absl::Now();
  constexpr absl::Duration kTick = absl::Milliseconds(100);
  while (true) {
    absl::Status why;
    XC_ASSIGN_OR_RETURN(Progress now, connection_->Look(&why));
    if (now.readiness == Readiness::kReady) return absl::OkStatus();
    now.waited = absl::Now() - start;
    if (now.waited >= unreachable_timeout) {
      if (now.readiness == Readiness::kUnreachable) return why;
      if (now.readiness == Readiness::kStopping) {
        return absl::UnavailableError(absl::StrCat(
            "the server at ", connection_->address(), " is shutting down"));
      }
    }
    if (now.waited >= timeout) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the server at ", connection_->address(), " is not ready after ",
          absl::FormatDuration(absl::Trunc(now.waited, kTick))));
    }
    if (progress != nullptr && !progress(now)) {
      return absl::CancelledError("cancelled");
    }
    absl::SleepFor(kTick);
  }
}

absl::StatusOr<Answer> Client::Chat(const ChatRequest& request,
                                    const StreamOptions& stream) {
  // Without a session a repeated turn changes nothing either.
  const Repeat repeat = request.expected_turn || request.session_id.empty()
                            ? Repeat::kAlways
                            : Repeat::kIfRefused;
  return connection_->Stream(&v1::Inference::Stub::Chat, ToProto(request),
                             repeat, stream);
}

absl::StatusOr<Answer> Client::Generate(const GenerateRequest& request,
                                        const StreamOptions& stream) {
  return connection_->Stream(&v1::Inference::Stub::Generate, ToProto(request),
                             Repeat::kAlways, stream);
}

absl::StatusOr<Tokens> Client::Tokenize(const std::string& text,
                                        const TokenizeOptions& options) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_parse_special(options.parse_special);
  request.set_add_bos(options.add_bos);
  return connection_->Get(&v1::Inference::Stub::Tokenize, request,
                          Repeat::kAlways);
}

absl::StatusOr<Tokens> Client::TokenizeMessages(
    const std::vector<Message>& messages, bool add_generation_prompt) {
  v1::TokenizeRequest request;
  for (const Message& message : messages) {
    ToProto(message, request.mutable_messages()->add_messages());
  }
  request.mutable_messages()->set_add_generation_prompt(add_generation_prompt);
  return connection_->Get(&v1::Inference::Stub::Tokenize, request,
                          Repeat::kAlways);
}

absl::StatusOr<Detokenized> Client::Detokenize(const std::vector<uint32_t>& ids,
                                               bool with_special) {
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Add(ids.begin(), ids.end());
  request.set_with_special(with_special);
  return connection_->Get(&v1::Inference::Stub::Detokenize, request,
                          Repeat::kAlways);
}

absl::StatusOr<ScoreResult> Client::Score(const ScoreRequest& request) {
  return connection_->Get(&v1::Inference::Stub::Score, ToProto(request),
                          Repeat::kAlways);
}

absl::StatusOr<ModelInfo> Client::GetModelInfo() {
  return connection_->Get(&v1::Inference::Stub::GetModelInfo,
                          v1::GetModelInfoRequest(), Repeat::kAlways);
}

absl::StatusOr<SessionInfo> Client::CreateSession(
    const CreateSessionOptions& options) {
  // Twice would make two sessions, or an ALREADY_EXISTS of its own making.
  return connection_->Get(&v1::Sessions::Stub::CreateSession, ToProto(options),
                          Repeat::kIfRefused);
}

absl::StatusOr<SessionInfo> Client::GetSession(const std::string& id,
                                               bool with_messages) {
  v1::GetSessionRequest request;
  request.set_id(id);
  request.set_with_messages(with_messages);
  return connection_->Get(&v1::Sessions::Stub::GetSession, request,
                          Repeat::kAlways);
}

absl::StatusOr<SessionList> Client::ListSessions(
    uint32_t page_size, const std::string& page_token) {
  v1::ListSessionsRequest request;
  request.set_page_size(page_size);
  request.set_page_token(page_token);
  return connection_->Get(&v1::Sessions::Stub::ListSessions, request,
                          Repeat::kAlways);
}

absl::Status Client::DeleteSession(const std::string& id) {
  v1::DeleteSessionRequest request;
  request.set_id(id);
  return connection_
      ->Call(&v1::Sessions::Stub::DeleteSession, request, Repeat::kIfRefused)
      .status();
}

absl::StatusOr<SessionInfo> Client::ForkSession(const std::string& id,
                                                const std::string& new_id,
                                                uint64_t num_messages,
                                                uint64_t keep_last_messages) {
  v1::ForkSessionRequest request;
  request.set_id(id);
  request.set_new_id(new_id);
  request.set_num_messages(num_messages);
  request.set_keep_last_messages(keep_last_messages);
  return connection_->Get(&v1::Sessions::Stub::ForkSession, request,
                          Repeat::kIfRefused);
}

absl::StatusOr<MigrateResult> Client::MigrateSession(
    const std::string& id, const std::string& codec,
    uint64_t keep_last_messages) {
  v1::MigrateSessionRequest request;
  request.set_id(id);
  request.set_codec(codec);
  request.set_keep_last_messages(keep_last_messages);
  return connection_->Get(&v1::Sessions::Stub::MigrateSession, request,
                          Repeat::kAlways);
}

absl::StatusOr<std::string> Client::ExportSession(const std::string& id,
                                                  bool text_only) {
  v1::ExportSessionRequest request;
  request.set_id(id);
  request.set_text_only(text_only);
  XC_ASSIGN_OR_RETURN(v1::ExportSessionResponse response,
                      connection_->Call(&v1::Sessions::Stub::ExportSession,
                                        request, Repeat::kAlways));
  return std::move(*response.mutable_document());
}

absl::StatusOr<SessionInfo> Client::ImportSession(const std::string& document,
                                                  const std::string& id,
                                                  const std::string& codec) {
  v1::ImportSessionRequest request;
  request.set_document(document);
  request.set_id(id);
  request.set_codec(codec);
  // Twice would be an ALREADY_EXISTS of its own making.
  return connection_->Get(&v1::Sessions::Stub::ImportSession, request,
                          Repeat::kIfRefused);
}

absl::StatusOr<SessionInfo> Client::UpdateSession(const std::string& id,
                                                  const SessionUpdate& update) {
  return connection_->Get(&v1::Sessions::Stub::UpdateSession,
                          ToProto(id, update), Repeat::kAlways);
}

absl::StatusOr<SessionInfo> Client::PinSession(const std::string& id) {
  v1::PinSessionRequest request;
  request.set_id(id);
  return connection_->Get(&v1::Sessions::Stub::PinSession, request,
                          Repeat::kAlways);
}

absl::StatusOr<SessionInfo> Client::UnpinSession(const std::string& id) {
  v1::UnpinSessionRequest request;
  request.set_id(id);
  return connection_->Get(&v1::Sessions::Stub::UnpinSession, request,
                          Repeat::kAlways);
}

absl::StatusOr<FlushResult> Client::FlushSession(const std::string& id) {
  v1::FlushSessionRequest request;
  request.set_id(id);
  return connection_->Get(&v1::Sessions::Stub::FlushSession, request,
                          Repeat::kAlways);
}

}  // namespace xcache::client
