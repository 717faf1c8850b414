// Between the client's plain types and the generated ones. Internal. The server
// has conversions of its own (server/grpc/convert.h), from and to types of its
// own: nothing of the server's is in an installed client library.
#ifndef XCACHE_CLIENT_CONVERT_H_
#define XCACHE_CLIENT_CONVERT_H_

#include <vector>

#include "client/types.h"
#include "xcache/v1/inference.pb.h"
#include "xcache/v1/sessions.pb.h"

namespace xcache::client {

void ToProto(const Message& message, v1::Message* out);
void ToProto(const GenerationParams& params, v1::GenerationParams* out);
v1::ChatRequest ToProto(const ChatRequest& request);
v1::GenerateRequest ToProto(const GenerateRequest& request);
v1::ScoreRequest ToProto(const ScoreRequest& request);
v1::CreateSessionRequest ToProto(const CreateSessionOptions& options);
v1::UpdateSessionRequest ToProto(const std::string& id,
                                 const SessionUpdate& update);

SampledToken FromProto(const v1::SampledToken& token);
ReusedTokens FromProto(const v1::ReusedTokens& reused);
// Fills all but the text, the tokens and the client's own times.
void FromProto(const v1::Final& final, Answer* answer);
SessionInfo FromProto(const v1::Session& session);
ModelInfo FromProto(const v1::GetModelInfoResponse& info);
Tokens FromProto(const v1::TokenizeResponse& response);
Detokenized FromProto(const v1::DetokenizeResponse& response);
ScoreResult FromProto(const v1::ScoreResponse& response);
SessionList FromProto(const v1::ListSessionsResponse& response);
MigrateResult FromProto(const v1::MigrateSessionResponse& response);
FlushResult FromProto(const v1::FlushSessionResponse& response);

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_CONVERT_H_
