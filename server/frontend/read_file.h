// Reads a small file whole.
#ifndef XCACHE_SERVER_FRONTEND_READ_FILE_H_
#define XCACHE_SERVER_FRONTEND_READ_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace xcache {

// NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT (not a regular file, empty,
// larger than `max_bytes`); the message starts with `path`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_READ_FILE_H_
