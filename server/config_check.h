// Finds what an operator wrote and nothing reads: a misspelled key or variable
// would otherwise leave a setting at its default without a word.
#ifndef XCACHE_SERVER_CONFIG_CHECK_H_
#define XCACHE_SERVER_CONFIG_CHECK_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace xcache {

// INVALID_ARGUMENT for the first key of the file that `app`'s --config names
// which is none of its options: the file, the line, the key and the nearest
// one. REQUIRES: `app` has parsed its command line.
absl::Status CheckConfigKeys(const CLI::App& app);

// A sentence for each XCACHE_* variable of `environment` ("NAME=value") that is
// none of `app`'s. Not for those that other programs read, or that Kubernetes
// sets beside a Service named xcache.
std::vector<std::string> UnknownVariables(const CLI::App& app,
                                          const char* const* environment);

}  // namespace xcache

#endif  // XCACHE_SERVER_CONFIG_CHECK_H_
