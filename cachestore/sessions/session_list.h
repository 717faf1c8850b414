// Pages of a list of sessions, the most recently updated first.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_LIST_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_LIST_H_

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cachestore/sessions/session_record.h"

namespace xcache {

// A session's place in its tenant's list: (-update_ms, id).
using ListPlace = std::pair<int64_t, std::string>;

inline ListPlace PlaceOf(const SessionHead& session) {
  return {-session.update_ms, session.id};
}

struct SessionPage {
  std::vector<SessionSummary> sessions;
  std::string next_page_token;  // empty: these were the last
};

// At most `limit` from where `page_token` (empty: the start) says.
// INVALID_ARGUMENT: not a token of ours, or no such limit.
absl::StatusOr<SessionPage> PageOf(
    const std::set<ListPlace>& order, std::string_view page_token, int limit,
    const std::function<SessionSummary(const std::string& id)>& summary);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_LIST_H_
