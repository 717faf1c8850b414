// Between the messages of Triton's protocol (proto/inference) and the core's
// values: what a request may be, and what it is answered with.
#ifndef XCACHE_SERVER_GRPC_TRITON_REQUEST_H_
#define XCACHE_SERVER_GRPC_TRITON_REQUEST_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "inference/inference_service.pb.h"
#include "server/core/request.h"
#include "server/core/server_core.h"

namespace xcache {

struct TritonRequest {
  std::string id;    // the client's, for what answers it
  std::string text;  // UTF-8
  bool stream = false;
  bool prepend_input = false;
  bool wants_text = true;
  bool wants_reason = true;
  std::string session;  // "": none
  bool session_is_new = false;
  bool session_ends = false;
  GenerationOptions options;
};

// INVALID_ARGUMENT names what is wrong, what may be, and what was found;
// NOT_FOUND: another model than `model`. `may_stream`: the call can.
absl::StatusOr<TritonRequest> ToTriton(
    const ::inference::ModelInferRequest& request, std::string_view model,
    bool may_stream);

// NOT_FOUND: not the model, or not its version.
absl::Status CheckTritonModel(std::string_view name, std::string_view version,
                              std::string_view model);

// Has the core answer it. REQUIRES: `base` is filled in but for what it asks.
absl::Status Submit(const TritonRequest& request, const RequestBase& base,
                    ServerCore& core, std::shared_ptr<RequestSink> sink);

// The next piece of an answer, or its last.
::inference::ModelInferResponse ToResponse(const TritonRequest& request,
                                           std::string_view model,
                                           std::string_view text,
                                           FinishReason reason, bool final);

void Describe(std::string_view model, ::inference::ModelMetadataResponse* out);
void Describe(std::string_view model, ::inference::ModelConfig* out);

inline constexpr std::string_view kTritonVersion = "1";

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_TRITON_REQUEST_H_
