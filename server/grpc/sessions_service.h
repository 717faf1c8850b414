// The RPCs of xcache.v1.Sessions, each a thin door to the core.
#ifndef XCACHE_SERVER_GRPC_SESSIONS_SERVICE_H_
#define XCACHE_SERVER_GRPC_SESSIONS_SERVICE_H_

#include "server/grpc/call.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache {

class SessionsService final : public v1::Sessions::CallbackService {
 public:
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  explicit SessionsService(const ServiceDeps& deps) : deps_(deps) {}

  Reactor* CreateSession(Context* context,
                         const v1::CreateSessionRequest* request,
                         v1::Session* response) override;
  Reactor* GetSession(Context* context, const v1::GetSessionRequest* request,
                      v1::Session* response) override;
  Reactor* ListSessions(Context* context,
                        const v1::ListSessionsRequest* request,
                        v1::ListSessionsResponse* response) override;
  Reactor* DeleteSession(Context* context,
                         const v1::DeleteSessionRequest* request,
                         v1::DeleteSessionResponse* response) override;
  Reactor* ForkSession(Context* context, const v1::ForkSessionRequest* request,
                       v1::Session* response) override;
  Reactor* MigrateSession(Context* context,
                          const v1::MigrateSessionRequest* request,
                          v1::MigrateSessionResponse* response) override;
  Reactor* ExportSession(Context* context,
                         const v1::ExportSessionRequest* request,
                         v1::ExportSessionResponse* response) override;
  Reactor* ImportSession(Context* context,
                         const v1::ImportSessionRequest* request,
                         v1::Session* response) override;
  Reactor* UpdateSession(Context* context,
                         const v1::UpdateSessionRequest* request,
                         v1::Session* response) override;
  Reactor* PinSession(Context* context, const v1::PinSessionRequest* request,
                      v1::Session* response) override;
  Reactor* UnpinSession(Context* context,
                        const v1::UnpinSessionRequest* request,
                        v1::Session* response) override;
  Reactor* FlushSession(Context* context,
                        const v1::FlushSessionRequest* request,
                        v1::FlushSessionResponse* response) override;

 private:
  const ServiceDeps deps_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_SESSIONS_SERVICE_H_
