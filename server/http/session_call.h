// Calls about sessions, whatever made them: XCache's own part of the HTTP API,
// as Sessions of proto/xcache/v1 has it over gRPC.
#ifndef XCACHE_SERVER_HTTP_SESSION_CALL_H_
#define XCACHE_SERVER_HTTP_SESSION_CALL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/core/server_core.h"
#include "server/http/openai_call.h"

namespace xcache {

// {"title", "pinned", "ttl_seconds"}, any of them. Errors, here and below:
// INVALID_ARGUMENT, with FieldOf (json_body.h).
absl::StatusOr<SessionUpdate> ToSessionUpdate(const nlohmann::json& body);
// {"id", "num_messages", "keep_last_messages"}, of the new session.
absl::StatusOr<ForkOptions> ToForkOptions(const nlohmann::json& body);

// `kv_fp16_bytes_per_token`: of the model.
nlohmann::json SessionObject(const SessionInfo& session,
                             int64_t kv_fp16_bytes_per_token);

class SessionCall final : public OpenAiCall {
 public:
  // `id`: of the path; empty: it is about all sessions.
  SessionCall(const OpenAiOptions& options, Method method, std::string id,
              std::shared_ptr<Exchange> exchange)
      : OpenAiCall(options, method, std::move(exchange)), id_(std::move(id)) {}

 private:
  absl::Status Submit() override;
  WorkClass work() const override;

  absl::StatusOr<nlohmann::json> Answer();
  absl::StatusOr<nlohmann::json> List();
  absl::StatusOr<nlohmann::json> Update();
  absl::StatusOr<nlohmann::json> Fork();
  nlohmann::json Object(const SessionInfo& session) const;

  const std::string id_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_SESSION_CALL_H_
