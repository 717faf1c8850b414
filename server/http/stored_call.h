// Calls about what is stored already, or is to be, without an answer made:
// responses by id, conversations.
#ifndef XCACHE_SERVER_HTTP_STORED_CALL_H_
#define XCACHE_SERVER_HTTP_STORED_CALL_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/http/openai_call.h"

namespace xcache {

class StoredCall final : public OpenAiCall {
 public:
  // `id`: of the path, and `item`, an item's, where it has one.
  StoredCall(const OpenAiOptions& options, Method method, std::string id,
             std::string item, std::shared_ptr<Exchange> exchange)
      : OpenAiCall(options, method, std::move(exchange)),
        id_(std::move(id)),
        item_(std::move(item)) {}

 private:
  absl::Status Submit() override;
  WorkClass work() const override;

  absl::StatusOr<nlohmann::json> Answer();
  absl::StatusOr<nlohmann::json> DeleteResponse();
  absl::StatusOr<nlohmann::json> ListInputItems();
  absl::StatusOr<nlohmann::json> CreateConversation();
  absl::StatusOr<nlohmann::json> UpdateConversation();
  absl::StatusOr<nlohmann::json> DeleteConversation();
  absl::StatusOr<nlohmann::json> ConversationItems();

  const std::string id_, item_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_STORED_CALL_H_
