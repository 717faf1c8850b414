#include "server/grpc/sessions_service.h"

#include <utility>

#include "engine/base/status_macros.h"
#include "server/grpc/convert.h"
#include "server/grpc/unary_call.h"

namespace xcache {
namespace {

absl::Status Answer(const absl::StatusOr<SessionInfo>& info,
                    v1::Session* response) {
  if (info.ok()) ToProto(*info, response);
  return info.status();
}

SessionUpdate Pinned(bool pinned) {
  SessionUpdate update;
  update.pinned = pinned;
  return update;
}

}  // namespace

grpc::ServerUnaryReactor* SessionsService::CreateSession(
    grpc::CallbackServerContext* context,
    const v1::CreateSessionRequest* request, v1::Session* response) {
  return RunUnary(deps_, Method::kCreateSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    XC_ASSIGN_OR_RETURN(CreateSessionOptions options,
                                        ToCreateSession(*request));
                    options.tenant = call.tenant();
                    return Answer(call.core().CreateSession(options), response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::GetSession(
    grpc::CallbackServerContext* context, const v1::GetSessionRequest* request,
    v1::Session* response) {
  return RunUnary(deps_, Method::kGetSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    return Answer(
                        call.core().GetSession(call.tenant(), request->id(),
                                               request->with_messages()),
                        response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::ListSessions(
    grpc::CallbackServerContext* context,
    const v1::ListSessionsRequest* request,
    v1::ListSessionsResponse* response) {
  return RunUnary(
      deps_, Method::kListSessions, context, *request,
      [=](Call& call) -> absl::Status {
        XC_RETURN_IF_ERROR(CheckListSessions(*request));
        XC_ASSIGN_OR_RETURN(
            const auto page,
            call.core().ListSessions(call.tenant(),
                                     static_cast<int>(request->page_size()),
                                     request->page_token()));
        for (const SessionInfo& info : page.sessions) {
          ToProto(info, response->add_sessions());
        }
        response->set_next_page_token(page.next_page_token);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* SessionsService::DeleteSession(
    grpc::CallbackServerContext* context,
    const v1::DeleteSessionRequest* request,
    v1::DeleteSessionResponse* /*response*/) {
  return RunUnary(deps_, Method::kDeleteSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    return call.core().DeleteSession(call.tenant(),
                                                     request->id());
                  });
}

grpc::ServerUnaryReactor* SessionsService::ForkSession(
    grpc::CallbackServerContext* context, const v1::ForkSessionRequest* request,
    v1::Session* response) {
  return RunUnary(deps_, Method::kForkSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    return Answer(call.core().ForkSession(
                                      {.tenant = call.tenant(),
                                       .id = request->id(),
                                       .new_id = request->new_id(),
                                       .num_messages = request->num_messages(),
                                       .keep_last_messages =
                                           request->keep_last_messages()}),
                                  response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::MigrateSession(
    grpc::CallbackServerContext* context,
    const v1::MigrateSessionRequest* request,
    v1::MigrateSessionResponse* response) {
  return RunUnary(
      deps_, Method::kMigrateSession, context, *request,
      [=](Call& call) -> absl::Status {
        XC_ASSIGN_OR_RETURN(
            const MigrateResult result,
            call.core().MigrateSession(
                {.tenant = call.tenant(),
                 .id = request->id(),
                 .codec = request->codec(),
                 .keep_last_messages = request->keep_last_messages()}));
        ToProto(result, response);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* SessionsService::ExportSession(
    grpc::CallbackServerContext* context,
    const v1::ExportSessionRequest* request,
    v1::ExportSessionResponse* response) {
  return RunUnary(deps_, Method::kExportSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    XC_ASSIGN_OR_RETURN(
                        *response->mutable_document(),
                        call.core().ExportSession(call.tenant(), request->id(),
                                                  request->text_only()));
                    return absl::OkStatus();
                  });
}

grpc::ServerUnaryReactor* SessionsService::ImportSession(
    grpc::CallbackServerContext* context,
    const v1::ImportSessionRequest* request, v1::Session* response) {
  return RunUnary(deps_, Method::kImportSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    return Answer(call.core().ImportSession(
                                      {.tenant = call.tenant(),
                                       .document = request->document(),
                                       .id = request->id(),
                                       .codec = request->codec()}),
                                  response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::UpdateSession(
    grpc::CallbackServerContext* context,
    const v1::UpdateSessionRequest* request, v1::Session* response) {
  return RunUnary(deps_, Method::kUpdateSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    XC_ASSIGN_OR_RETURN(const SessionUpdate update,
                                        ToUpdateSession(*request));
                    return Answer(call.core().UpdateSession(
                                      call.tenant(), request->id(), update),
                                  response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::PinSession(
    grpc::CallbackServerContext* context, const v1::PinSessionRequest* request,
    v1::Session* response) {
  return RunUnary(deps_, Method::kPinSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    return Answer(
                        call.core().UpdateSession(call.tenant(), request->id(),
                                                  Pinned(true)),
                        response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::UnpinSession(
    grpc::CallbackServerContext* context,
    const v1::UnpinSessionRequest* request, v1::Session* response) {
  return RunUnary(deps_, Method::kUnpinSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    return Answer(
                        call.core().UpdateSession(call.tenant(), request->id(),
                                                  Pinned(false)),
                        response);
                  });
}

grpc::ServerUnaryReactor* SessionsService::FlushSession(
    grpc::CallbackServerContext* context,
    const v1::FlushSessionRequest* request,
    v1::FlushSessionResponse* response) {
  return RunUnary(deps_, Method::kFlushSession, context, *request,
                  [=](Call& call) -> absl::Status {
                    XC_ASSIGN_OR_RETURN(
                        const FlushResult result,
                        call.core().FlushSession(call.tenant(), request->id()));
                    response->set_pages_written(result.pages_written);
                    response->set_bytes_written(result.bytes_written);
                    return absl::OkStatus();
                  });
}

}  // namespace xcache
