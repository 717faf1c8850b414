#include "server/frontend/descriptors.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace xcache {

absl::StatusOr<int64_t> RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return absl::InternalError(absl::StrCat(
        "cannot read the limit of open files: ", std::strerror(errno)));
  }
  if (limit.rlim_cur < limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  const auto have = static_cast<int64_t>(std::min<rlim_t>(
      limit.rlim_cur,
      static_cast<rlim_t>(std::numeric_limits<int32_t>::max())));
  constexpr int64_t kMin = kReservedDescriptors + kMinConnections;
  if (have < kMin) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this process may have ", have, " files open, and needs ", kMin,
        " at least: raise the hard limit (ulimit -Hn, LimitNOFILE=)"));
  }
  return have;
}

int ConnectionsWithin(int64_t descriptor_limit, int wanted, int num_doors) {
  return static_cast<int>(std::min<int64_t>(
      wanted, (descriptor_limit - kReservedDescriptors) / num_doors));
}

}  // namespace xcache
