// Names of methods and of codes, as labels of metrics have them.
#include <cstddef>
#include <iterator>

#include "server/metrics/metrics.h"

namespace xcache {
namespace {

constexpr size_t Index(auto id) { return static_cast<size_t>(id); }

}  // namespace

std::string_view MethodName(Method method) {
  static constexpr std::string_view kNames[] = {"Chat",
                                                "Generate",
                                                "Tokenize",
                                                "Detokenize",
                                                "Score",
                                                "GetModelInfo",
                                                "CreateSession",
                                                "GetSession",
                                                "ListSessions",
                                                "DeleteSession",
                                                "ForkSession",
                                                "MigrateSession",
                                                "ExportSession",
                                                "ImportSession",
                                                "UpdateSession",
                                                "PinSession",
                                                "UnpinSession",
                                                "FlushSession",
                                                "ModelInfer",
                                                "ModelStreamInfer",
                                                "ChatCompletions",
                                                "Completions",
                                                "Embeddings",
                                                "ListModels",
                                                "RetrieveModel",
                                                "CreateResponse",
                                                "RetrieveResponse",
                                                "DeleteResponse",
                                                "ListInputItems",
                                                "CreateConversation",
                                                "RetrieveConversation",
                                                "UpdateConversation",
                                                "DeleteConversation",
                                                "ListConversationItems",
                                                "RetrieveConversationItem"};
  static_assert(std::size(kNames) == Index(Method::kCount));
  return kNames[Index(method)];
}

std::string_view CodeName(absl::StatusCode code) {
  static constexpr std::string_view kNames[] = {"OK",
                                                "CANCELLED",
                                                "UNKNOWN",
                                                "INVALID_ARGUMENT",
                                                "DEADLINE_EXCEEDED",
                                                "NOT_FOUND",
                                                "ALREADY_EXISTS",
                                                "PERMISSION_DENIED",
                                                "RESOURCE_EXHAUSTED",
                                                "FAILED_PRECONDITION",
                                                "ABORTED",
                                                "OUT_OF_RANGE",
                                                "UNIMPLEMENTED",
                                                "INTERNAL",
                                                "UNAVAILABLE",
                                                "DATA_LOSS",
                                                "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

}  // namespace xcache
