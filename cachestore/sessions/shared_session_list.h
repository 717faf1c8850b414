// Lists of a tenant's sessions in a shared store. What a listing has read of a
// session it keeps, as long as the session's object stays as it is.
#ifndef XCACHE_CACHESTORE_SESSIONS_SHARED_SESSION_LIST_H_
#define XCACHE_CACHESTORE_SESSIONS_SHARED_SESSION_LIST_H_

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/sessions/session_objects.h"
#include "cachestore/sessions/session_record.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class SharedSessionList {
 public:
  using Sessions = std::map<std::string, SessionSummary>;  // by id

  SharedSessionList(SessionObjects& objects, MemoryBudget& budget);

  // As they are, or were a second ago: Changed() makes it look again.
  // RESOURCE_EXHAUSTED: no memory for so many.
  absl::StatusOr<std::shared_ptr<const Sessions>> Of(std::string_view tenant);
  void Changed() XC_EXCLUDES(changed_mu_);

 private:
  using Clock = std::chrono::steady_clock;
  struct Seen {
    std::string etag;
    std::optional<SessionSummary> summary;  // none: it is deleted, or damaged
  };

  absl::Status Read(const std::string& prefix,
                    const std::vector<ListedObject>& listed) XC_REQUIRES(mu_);

  SessionObjects& objects_;
  Mutex mu_;  // before changed_mu_
  absl::flat_hash_map<std::string, Seen> seen_ XC_GUARDED_BY(mu_);
  MemoryReservation seen_memory_ XC_GUARDED_BY(mu_);
  // The last list.
  std::string tenant_ XC_GUARDED_BY(mu_);
  std::shared_ptr<const Sessions> sessions_ XC_GUARDED_BY(mu_);
  Clock::time_point made_ XC_GUARDED_BY(mu_);
  Mutex changed_mu_;
  bool changed_ XC_GUARDED_BY(changed_mu_) = true;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SHARED_SESSION_LIST_H_
