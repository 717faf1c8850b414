#include "server/http/stored_call.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/frontend/answer_reader.h"
#include "server/frontend/tools.h"
#include "server/http/json_body.h"
#include "server/http/responses_request.h"
#include "server/http/stored_responses.h"

namespace xcache {

using nlohmann::json;

WorkClass StoredCall::work() const {
  switch (method_) {
    case Method::kCreateConversation:
      return OpenAiCall::work();
    case Method::kUpdateConversation:
    case Method::kDeleteConversation:
    case Method::kDeleteResponse:
      return WorkClass::kStore;
    default:
      return WorkClass::kLookup;
  }
}

absl::Status StoredCall::Submit() {
  XC_ASSIGN_OR_RETURN(const json answer, Answer());
  call_.Close(absl::OkStatus(), 0, "");
  RespondJson(answer);
  return absl::OkStatus();
}

absl::StatusOr<json> StoredCall::Answer() {
  switch (method_) {
    case Method::kRetrieveResponse: {
      XC_ASSIGN_OR_RETURN(const FoundResponse found,
                          FindResponse(call_.core(), call_.tenant(), id_));
      return StoredResponse(found, DefaultSystemOf(call_.core()));
    }
    case Method::kDeleteResponse:
      return DeleteResponse();
    case Method::kListInputItems:
      return ListInputItems();
    case Method::kCreateConversation:
      return CreateConversation();
    case Method::kRetrieveConversation: {
      XC_ASSIGN_OR_RETURN(const SessionInfo session,
                          FindConversation(call_.core(), call_.tenant(), id_));
      return ConversationObject(session);
    }
    case Method::kUpdateConversation:
      return UpdateConversation();
    case Method::kDeleteConversation:
      return DeleteConversation();
    default:
      return ConversationItems();
  }
}

absl::StatusOr<json> StoredCall::DeleteResponse() {
  XC_ASSIGN_OR_RETURN(const FoundResponse found,
                      FindResponse(call_.core(), call_.tenant(), id_));
  // A conversation keeps its messages.
  XC_RETURN_IF_ERROR(call_.core().ForgetAnswer(
      call_.tenant(), found.session.id, found.note.name,
      /*cut=*/IsChain(found.session.id)));
  return DeletedObject(id_, "response");
}

absl::StatusOr<json> StoredCall::ListInputItems() {
  XC_ASSIGN_OR_RETURN(const PageRequest page,
                      ToPageRequest(exchange_->head.query));
  XC_ASSIGN_OR_RETURN(const FoundResponse found,
                      FindResponse(call_.core(), call_.tenant(), id_));
  return ListObject(ItemsOf(found.session, found.note.num_messages - 1), page);
}

absl::StatusOr<json> StoredCall::CreateConversation() {
  CreateSessionOptions options;
  {
    // OpenAI's client sends no body where there is nothing to say.
    if (exchange_->body.empty()) exchange_->body = "{}";
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    XC_ASSIGN_OR_RETURN(ConversationRequest request,
                        ToConversationRequest(body.json));
    options.messages = std::move(request.items);
    if (!request.metadata.is_null()) options.data = JsonBytes(request.metadata);
  }
  options.tenant = call_.tenant();
  options.id = RandomId("conv_");
  XC_ASSIGN_OR_RETURN(const SessionInfo session,
                      call_.core().CreateSession(options));
  return ConversationObject(session);
}

absl::StatusOr<json> StoredCall::UpdateConversation() {
  SessionUpdate update;
  {
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    XC_ASSIGN_OR_RETURN(const ConversationRequest request,
                        ToConversationRequest(body.json));
    if (request.metadata.is_null()) {
      return JsonFieldError("metadata", "an object", json());
    }
    update.data = JsonBytes(request.metadata);
  }
  XC_RETURN_IF_ERROR(
      FindConversation(call_.core(), call_.tenant(), id_).status());
  XC_ASSIGN_OR_RETURN(const SessionInfo session,
                      call_.core().UpdateSession(call_.tenant(), id_, update));
  return ConversationObject(session);
}

absl::StatusOr<json> StoredCall::DeleteConversation() {
  XC_RETURN_IF_ERROR(
      FindConversation(call_.core(), call_.tenant(), id_).status());
  XC_RETURN_IF_ERROR(call_.core().DeleteSession(call_.tenant(), id_));
  return DeletedObject(id_, "conversation.deleted");
}

absl::StatusOr<json> StoredCall::ConversationItems() {
  XC_ASSIGN_OR_RETURN(const PageRequest page,
                      ToPageRequest(exchange_->head.query));
  XC_ASSIGN_OR_RETURN(const SessionInfo session,
                      FindConversation(call_.core(), call_.tenant(), id_));
  std::vector<json> items = ItemsOf(session, session.messages.size());
  if (item_.empty()) return ListObject(std::move(items), page);
  for (json& item : items) {
    if (item["id"] == item_) return std::move(item);
  }
  return WithCode(absl::NotFoundError(absl::StrCat(
                      "conversation '", session.id, "' has no item '",
                      ToUtf8(std::string_view(item_).substr(0, 200)), "'")),
                  "item_not_found");
}

}  // namespace xcache
