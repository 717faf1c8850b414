// Stored responses and conversations, as OpenAI's objects. There is no store of
// them: a response is an answer of a session, with a note (AnswerNote) that was
// committed with it, and a conversation is a session.
//
// A response's id is "resp_", the note's name, "_", the session's id.
#ifndef XCACHE_SERVER_HTTP_STORED_RESPONSES_H_
#define XCACHE_SERVER_HTTP_STORED_RESPONSES_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/core/server_core.h"
#include "server/http/responses_request.h"

namespace xcache {

// Sessions that responses alone made, each of which goes on from the one
// before. They end where their last response is deleted.
inline constexpr std::string_view kChainPrefix = "chain_";
inline bool IsChain(std::string_view session) {
  return session.starts_with(kChainPrefix);
}

std::string ResponseId(std::string_view name, std::string_view session);
struct ResponseName {
  std::string name, session;
};
// NOT_FOUND: no id of ours.
absl::StatusOr<ResponseName> ParseResponseId(std::string_view id);

// A response and the session that it is of, as they are now.
struct FoundResponse {
  SessionInfo session;
  AnswerNote note;
};
absl::StatusOr<FoundResponse> FindResponse(ServerCore& core,
                                           std::string_view tenant,
                                           std::string_view id);
// NOT_FOUND also where no session can have that id.
absl::StatusOr<SessionInfo> FindConversation(ServerCore& core,
                                             std::string_view tenant,
                                             std::string_view id);

// What the conversation begins with, without tools and the template's own
// (`default_system`), or null.
nlohmann::json InstructionsOf(const SessionInfo& session,
                              std::string_view default_system);

// "completed", or "incomplete" where it was cut.
std::string_view ResponseStatus(FinishReason reason);

// The whole object. `said`: what is known of it from its request on, "id" and
// "created_at" among it. Output and usage are of one that has ended alone.
nlohmann::json ResponseObject(const nlohmann::json& said,
                              std::string_view status, nlohmann::json output,
                              const AnswerNote* note);
nlohmann::json StoredResponse(const FoundResponse& found,
                              std::string_view default_system);

nlohmann::json ConversationObject(const SessionInfo& session);
nlohmann::json DeletedObject(std::string_view id, std::string_view object);

// All messages of a session up to a number of them, as items.
std::vector<nlohmann::json> ItemsOf(const SessionInfo& session,
                                    size_t num_messages);
// INVALID_ARGUMENT: `after` is none of them.
absl::StatusOr<nlohmann::json> ListObject(std::vector<nlohmann::json> items,
                                          const PageRequest& page);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_STORED_RESPONSES_H_
