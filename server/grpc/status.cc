#include "server/grpc/status.h"

#include <string>
#include <string_view>

#include "engine/base/utf8.h"
#include "server/core/reason.h"
#include "xcache/v1/errors.pb.h"

namespace xcache {
namespace {

// Peers refuse trailers of more than 8 KiB by default. The message is there
// twice: percent-encoded, up to three bytes of one, and in the details, in
// base64.
constexpr size_t kMaxMessageBytes = 1024;

constexpr char kDomain[] = "xcache";

void AddDetail(std::string_view type, const google::protobuf::Message& detail,
               v1::ErrorStatus& out) {
  google::protobuf::Any& any = *out.add_details();
  any.set_type_url("type.googleapis.com/google.rpc." + std::string(type));
  detail.SerializeToString(any.mutable_value());
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status, int64_t retry_after_ms) {
  if (status.ok()) return grpc::Status::OK;
  auto code = static_cast<grpc::StatusCode>(status.raw_code());
  if (code < grpc::StatusCode::CANCELLED ||
      code > grpc::StatusCode::UNAUTHENTICATED) {
    code = grpc::StatusCode::UNKNOWN;
  }
  std::string_view message(status.message().data(), status.message().size());
  std::string text = ToUtf8(message.substr(0, kMaxMessageBytes));
  if (message.size() > kMaxMessageBytes) text += "...";
  v1::ErrorStatus details;
  details.set_code(code);
  details.set_message(text);
  v1::ErrorInfo info;
  info.set_reason(std::string(ReasonOf(status).name));
  info.set_domain(kDomain);
  AddDetail("ErrorInfo", info, details);
  if (retry_after_ms > 0) {
    v1::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_after_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(retry_after_ms % 1000 * 1'000'000));
    AddDetail("RetryInfo", retry, details);
  }
  return grpc::Status(code, text, details.SerializeAsString());
}

void AddRetryAfter(grpc::CallbackServerContext& context, int64_t ms) {
  if (ms > 0) {
    context.AddTrailingMetadata(kRetryAfterTrailer, std::to_string(ms));
  }
}

}  // namespace xcache
