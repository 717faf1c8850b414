// How many files and sockets this process may have open, and what of that is
// left for connections: the store must never lack one because of clients.
#ifndef XCACHE_SERVER_FRONTEND_DESCRIPTORS_H_
#define XCACHE_SERVER_FRONTEND_DESCRIPTORS_H_

#include <cstdint>

#include "absl/status/statusor.h"

namespace xcache {

// For the store's tables (RocksDB keeps at most 256 of each database open),
// logs and blobs, the metrics page, the model, and what libraries open.
inline constexpr int64_t kReservedDescriptors = 640;
inline constexpr int64_t kMinConnections = 64;

// Raises the soft limit to the hard one and returns it. FAILED_PRECONDITION:
// it is below kReservedDescriptors + kMinConnections.
absl::StatusOr<int64_t> RaiseDescriptorLimit();

// `wanted`, or what the limit leaves each of `num_doors` listeners.
int ConnectionsWithin(int64_t descriptor_limit, int wanted, int num_doors);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_DESCRIPTORS_H_
