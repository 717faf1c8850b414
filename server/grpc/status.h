// The one place where our statuses become gRPC's.
#ifndef XCACHE_SERVER_GRPC_STATUS_H_
#define XCACHE_SERVER_GRPC_STATUS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"

namespace xcache {

// Trailers, in milliseconds and percent.
inline constexpr char kRetryAfterTrailer[] = "retry-after-ms";
inline constexpr char kLoadingPercentTrailer[] = "loading-percent";
inline constexpr char kLoadingWhatTrailer[] = "loading-what";

// The same code (they have the same numbers), the message as UTF-8 and cut to
// what fits in a trailer; as details its reason and, where that is not 0, when
// to try again (xcache/v1/errors.proto).
grpc::Status ToGrpcStatus(const absl::Status& status,
                          int64_t retry_after_ms = 0);

// Tells the client when to try again; nothing where `ms` is 0.
// REQUIRES: before the call is finished.
void AddRetryAfter(grpc::CallbackServerContext& context, int64_t ms);

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_STATUS_H_
