// Between the wire's messages and the core's values. What the wire alone knows
// is checked here: INVALID_ARGUMENT names the field, what it may be and what it
// was. What a session, an answer's options and a score may be is checked by the
// core. Nothing here blocks, and nothing here trusts a byte.
#ifndef XCACHE_SERVER_GRPC_CONVERT_H_
#define XCACHE_SERVER_GRPC_CONVERT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"
#include "server/core/request.h"
#include "server/core/server_core.h"
#include "server/frontend/text_input.h"
#include "xcache/v1/inference.pb.h"
#include "xcache/v1/sessions.pb.h"

namespace xcache {

// --- Requests. The fields of RequestBase are left to the caller.

GenerationOptions ToOptions(const v1::GenerationParams& params);
absl::StatusOr<ChatTurn> ToChatTurn(const v1::ChatRequest& request);
absl::StatusOr<GenerateRequest> ToGenerate(const v1::GenerateRequest& request,
                                           const Tokenizer& tokenizer);
absl::StatusOr<ScoreRequest> ToScore(const v1::ScoreRequest& request,
                                     const Tokenizer& tokenizer);
absl::StatusOr<CreateSessionOptions> ToCreateSession(
    const v1::CreateSessionRequest& request);
absl::StatusOr<SessionUpdate> ToUpdateSession(
    const v1::UpdateSessionRequest& request);

// `field`'s messages, with calls and results of tools in their texts;
// `allow_empty` says whether there may be none.
absl::StatusOr<std::vector<ChatMessage>> ToMessages(
    std::string_view field,
    const google::protobuf::RepeatedPtrField<v1::Message>& messages,
    bool allow_empty);
absl::StatusOr<std::vector<TokenId>> ToTokenIds(
    std::string_view field,
    const google::protobuf::RepeatedField<uint32_t>& ids, int vocab_size);
// More than an int holds is as much as it holds.
int ToInt(uint32_t value);

// --- Responses.

void ToProto(const FinalInfo& info, v1::Final* out);
void ToProto(const ReusedCounts& reused, v1::ReusedTokens* out);
void ToProto(const SampledToken& token, const Tokenizer& tokenizer,
             v1::SampledToken* out);
void ToProto(const SessionInfo& info, v1::Session* out);
void ToProto(const SessionList& list, v1::ListSessionsResponse* out);
void ToProto(const MigrateResult& result, v1::MigrateSessionResponse* out);
void ToProto(const FlushResult& result, v1::FlushSessionResponse* out);
void ToProto(const ServerCore& core, v1::GetModelInfoResponse* out);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_CONVERT_H_
