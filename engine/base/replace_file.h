// Files written whole or not at all.
#ifndef XCACHE_ENGINE_BASE_REPLACE_FILE_H_
#define XCACHE_ENGINE_BASE_REPLACE_FILE_H_

#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace xcache {

// Makes `name` of the folder `dir` a file of `parts`, one after another, for
// its owner alone. All or nothing, also when the machine stops: written under
// another name, synced, renamed, and the folder synced. INTERNAL: what the
// system says.
absl::Status ReplaceFile(const std::string& dir, std::string_view name,
                         std::span<const std::string_view> parts);

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_REPLACE_FILE_H_
