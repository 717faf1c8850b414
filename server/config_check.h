// Compares what an operator wrote with what there is to be set. Finds what
// nothing reads: a misspelled key or variable would otherwise leave a setting
// at its default without a word. And tells of each setting who set it.
#ifndef XCACHE_SERVER_CONFIG_CHECK_H_
#define XCACHE_SERVER_CONFIG_CHECK_H_

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/config.h"

namespace CLI {
class App;
}

namespace xcache {

// INVALID_ARGUMENT for each key of the file that `app`'s --config names which
// is none of its options: the file, the line, the key and the nearest one.
// REQUIRES: `app` has parsed its command line.
std::vector<absl::Status> CheckConfigKeys(const CLI::App& app);

// A sentence for each XCACHE_* variable of `environment` ("NAME=value") that is
// none of `app`'s. Not for those that other programs read, or that Kubernetes
// sets beside a Service named xcache.
std::vector<std::string> UnknownVariables(const CLI::App& app,
                                          const char* const* environment);

// All of `app`'s settings as the command line `words`, the file and the
// environment leave them; of those in `worked_out`, by name without dashes,
// that value, where it is empty "none". REQUIRES: `app` has parsed them.
std::vector<Setting> SettingsOf(
    const CLI::App& app, std::span<const char* const> words,
    const std::map<std::string_view, std::string>& worked_out);

}  // namespace xcache

#endif  // XCACHE_SERVER_CONFIG_CHECK_H_
