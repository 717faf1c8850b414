// A session's key on disk and its entry in the index of sessions (FORMAT.md).
// Encoding and checking alone.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_ENTRY_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_ENTRY_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "cachestore/page_key.h"
#include "cachestore/session_store.h"

namespace xcache {

// The key of a session: REQUIRES tenant and id of at most 255 bytes.
std::string SessionKey(std::string_view tenant, std::string_view id);
struct SessionName {
  std::string tenant;
  std::string id;
};
std::optional<SessionName> ParseSessionKey(std::string_view key);

// A session's summary and the key of its last page (the root's: it has none).
struct SessionEntry {
  SessionSummary summary;
  PageKey last_page{};
};
SessionEntry MakeSessionEntry(const SessionRecord& record);
std::string EncodeSessionEntry(const SessionEntry& entry);
// DATA_LOSS; FAILED_PRECONDITION: of another version.
absl::StatusOr<SessionEntry> DecodeSessionEntry(std::string_view key,
                                                std::string_view bytes);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_ENTRY_H_
