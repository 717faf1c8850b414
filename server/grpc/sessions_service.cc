#include "server/grpc/sessions_service.h"

#include <utility>

#include "engine/base/status_macros.h"
#include "server/grpc/convert.h"
#include "server/grpc/unary_call.h"

namespace xcache {
namespace {

SessionUpdate Pinned(bool pinned) {
  SessionUpdate update;
  update.pinned = pinned;
  return update;
}

// Has `ask` ask the core, on a worker thread, for what `response` is made of.
template <typename Response, typename Ask>
grpc::ServerUnaryReactor* Answer(const ServiceDeps& deps, Method method,
                                 grpc::CallbackServerContext* context,
                                 const google::protobuf::Message* request,
                                 Response* response, Ask ask) {
  return RunUnary(deps, method, context, *request,
                  [=](Call& call) -> absl::Status {
                    XC_ASSIGN_OR_RETURN(const auto found, ask(call));
                    ToProto(found, response);
                    return absl::OkStatus();
                  });
}

}  // namespace

using Context = SessionsService::Context;
using Reactor = SessionsService::Reactor;

Reactor* SessionsService::CreateSession(Context* context,
                                        const v1::CreateSessionRequest* request,
                                        v1::Session* response) {
  return Answer(deps_, Method::kCreateSession, context, request, response,
                [=](Call& call) -> absl::StatusOr<SessionInfo> {
                  XC_ASSIGN_OR_RETURN(CreateSessionOptions options,
                                      ToCreateSession(*request));
                  options.tenant = call.tenant();
                  return call.core().CreateSession(options);
                });
}

Reactor* SessionsService::GetSession(Context* context,
                                     const v1::GetSessionRequest* request,
                                     v1::Session* response) {
  return Answer(deps_, Method::kGetSession, context, request, response,
                [=](Call& call) {
                  return call.core().GetSession(call.tenant(), request->id(),
                                                request->with_messages());
                });
}

Reactor* SessionsService::ListSessions(Context* context,
                                       const v1::ListSessionsRequest* request,
                                       v1::ListSessionsResponse* response) {
  return Answer(deps_, Method::kListSessions, context, request, response,
                [=](Call& call) {
                  return call.core().ListSessions(call.tenant(),
                                                  ToInt(request->page_size()),
                                                  request->page_token());
                });
}

Reactor* SessionsService::DeleteSession(
    Context* context, const v1::DeleteSessionRequest* request,
    v1::DeleteSessionResponse* /*response*/) {
  return RunUnary(
      deps_, Method::kDeleteSession, context, *request, [=](Call& call) {
        return call.core().DeleteSession(call.tenant(), request->id());
      });
}

Reactor* SessionsService::ForkSession(Context* context,
                                      const v1::ForkSessionRequest* request,
                                      v1::Session* response) {
  return Answer(deps_, Method::kForkSession, context, request, response,
                [=](Call& call) {
                  return call.core().ForkSession(
                      {.tenant = call.tenant(),
                       .id = request->id(),
                       .new_id = request->new_id(),
                       .num_messages = request->num_messages(),
                       .keep_last_messages = request->keep_last_messages()});
                });
}

Reactor* SessionsService::MigrateSession(
    Context* context, const v1::MigrateSessionRequest* request,
    v1::MigrateSessionResponse* response) {
  return Answer(deps_, Method::kMigrateSession, context, request, response,
                [=](Call& call) {
                  return call.core().MigrateSession(
                      {.tenant = call.tenant(),
                       .id = request->id(),
                       .codec = request->codec(),
                       .keep_last_messages = request->keep_last_messages()});
                });
}

Reactor* SessionsService::ExportSession(Context* context,
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

Reactor* SessionsService::ImportSession(Context* context,
                                        const v1::ImportSessionRequest* request,
                                        v1::Session* response) {
  return Answer(
      deps_, Method::kImportSession, context, request, response,
      [=](Call& call) {
        return call.core().ImportSession({.tenant = call.tenant(),
                                          .document = request->document(),
                                          .id = request->id(),
                                          .codec = request->codec()});
      });
}

Reactor* SessionsService::UpdateSession(Context* context,
                                        const v1::UpdateSessionRequest* request,
                                        v1::Session* response) {
  return Answer(deps_, Method::kUpdateSession, context, request, response,
                [=](Call& call) -> absl::StatusOr<SessionInfo> {
                  XC_ASSIGN_OR_RETURN(const SessionUpdate update,
                                      ToUpdateSession(*request));
                  return call.core().UpdateSession(call.tenant(), request->id(),
                                                   update);
                });
}

Reactor* SessionsService::PinSession(Context* context,
                                     const v1::PinSessionRequest* request,
                                     v1::Session* response) {
  return Answer(deps_, Method::kPinSession, context, request, response,
                [=](Call& call) {
                  return call.core().UpdateSession(call.tenant(), request->id(),
                                                   Pinned(true));
                });
}

Reactor* SessionsService::UnpinSession(Context* context,
                                       const v1::UnpinSessionRequest* request,
                                       v1::Session* response) {
  return Answer(deps_, Method::kUnpinSession, context, request, response,
                [=](Call& call) {
                  return call.core().UpdateSession(call.tenant(), request->id(),
                                                   Pinned(false));
                });
}

Reactor* SessionsService::FlushSession(Context* context,
                                       const v1::FlushSessionRequest* request,
                                       v1::FlushSessionResponse* response) {
  return Answer(deps_, Method::kFlushSession, context, request, response,
                [=](Call& call) {
                  return call.core().FlushSession(call.tenant(), request->id());
                });
}

}  // namespace xcache
