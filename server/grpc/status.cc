#include "server/grpc/status.h"

#include <string>
#include <string_view>

#include "server/frontend/utf8.h"

namespace xcache {
namespace {

// Peers refuse trailers of more than 8 KiB by default, and percent-encoding
// makes up to three bytes of one.
constexpr size_t kMaxMessageBytes = 2048;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  auto code = static_cast<grpc::StatusCode>(status.raw_code());
  if (code < grpc::StatusCode::CANCELLED ||
      code > grpc::StatusCode::UNAUTHENTICATED) {
    code = grpc::StatusCode::UNKNOWN;
  }
  std::string_view message(status.message().data(), status.message().size());
  std::string text = ToUtf8(message.substr(0, kMaxMessageBytes));
  if (message.size() > kMaxMessageBytes) text += "...";
  return grpc::Status(code, text);
}

void AddRetryAfter(grpc::CallbackServerContext& context, int64_t ms) {
  if (ms > 0) {
    context.AddTrailingMetadata(kRetryAfterTrailer, std::to_string(ms));
  }
}

}  // namespace xcache
