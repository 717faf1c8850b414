// Reads a small file whole, and sees to it that a secret one is kept so.
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

// The same of a file that holds a secret: PERMISSION_DENIED where everybody on
// this machine may use it.
absl::StatusOr<std::string> ReadSecretFile(const std::string& path,
                                           size_t max_bytes);

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_READ_FILE_H_
