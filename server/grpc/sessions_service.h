// The RPCs of xcache.v1.Sessions, each a thin door to the core.
#ifndef XCACHE_SERVER_GRPC_SESSIONS_SERVICE_H_
#define XCACHE_SERVER_GRPC_SESSIONS_SERVICE_H_

#include "server/grpc/call.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache {

class SessionsService final : public v1::Sessions::CallbackService {
 public:
  explicit SessionsService(const ServiceDeps& deps) : deps_(deps) {}

  grpc::ServerUnaryReactor* CreateSession(
      grpc::CallbackServerContext* context,
      const v1::CreateSessionRequest* request, v1::Session* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::Session* response) override;
  grpc::ServerUnaryReactor* ListSessions(
      grpc::CallbackServerContext* context,
      const v1::ListSessionsRequest* request,
      v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(
      grpc::CallbackServerContext* context,
      const v1::DeleteSessionRequest* request,
      v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* ForkSession(grpc::CallbackServerContext* context,
                                        const v1::ForkSessionRequest* request,
                                        v1::Session* response) override;
  grpc::ServerUnaryReactor* MigrateSession(
      grpc::CallbackServerContext* context,
      const v1::MigrateSessionRequest* request,
      v1::MigrateSessionResponse* response) override;
  grpc::ServerUnaryReactor* ExportSession(
      grpc::CallbackServerContext* context,
      const v1::ExportSessionRequest* request,
      v1::ExportSessionResponse* response) override;
  grpc::ServerUnaryReactor* ImportSession(
      grpc::CallbackServerContext* context,
      const v1::ImportSessionRequest* request, v1::Session* response) override;
  grpc::ServerUnaryReactor* UpdateSession(
      grpc::CallbackServerContext* context,
      const v1::UpdateSessionRequest* request, v1::Session* response) override;
  grpc::ServerUnaryReactor* PinSession(grpc::CallbackServerContext* context,
                                       const v1::PinSessionRequest* request,
                                       v1::Session* response) override;
  grpc::ServerUnaryReactor* UnpinSession(grpc::CallbackServerContext* context,
                                         const v1::UnpinSessionRequest* request,
                                         v1::Session* response) override;
  grpc::ServerUnaryReactor* FlushSession(
      grpc::CallbackServerContext* context,
      const v1::FlushSessionRequest* request,
      v1::FlushSessionResponse* response) override;

 private:
  const ServiceDeps deps_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_SESSIONS_SERVICE_H_
