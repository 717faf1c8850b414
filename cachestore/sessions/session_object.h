// A session as an object of a shared store: its manifest, and by which versions
// it came there; or the mark of one that was deleted. FORMAT.md has the bytes.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_OBJECT_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_OBJECT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace xcache {

// What a commit is called, at random: so that its writer knows it again, and
// that no two versions of an object have the same bytes.
using Revision = std::array<char, 16>;
Revision MakeRevision();

// The revisions that came before one, the latest first, as far as they are
// kept: one that is not among them may have been overtaken that often.
using Ancestry = std::vector<Revision>;
inline constexpr size_t kMaxAncestry = 8;
// Of one that follows one that is ahead of the store: each of those before it
// may be there all the same, by a put whose answer was lost, and is not to be
// taken for another server's.
inline constexpr size_t kMaxAncestryAhead = 255;

struct SessionObject {
  Revision revision{};
  Ancestry ancestry{};
  int64_t written_ms = 0;  // Unix time
  bool is_deleted = false;
  std::string manifest{};  // EncodeSessionRecord(); empty where it is deleted

  // Whether it is what that commit wrote, or was made from that.
  bool Holds(const Revision& commit) const;
  bool operator==(const SessionObject&) const = default;
};

std::string EncodeSessionObject(const SessionObject& object);
// DATA_LOSS: not the bytes of a whole object; FAILED_PRECONDITION: intact, of
// another format version.
absl::StatusOr<SessionObject> DecodeSessionObject(std::string_view bytes);

// SessionRecord::version: what a record is in the shared store, or follows.
struct SessionVersion {
  // Of the object that it is; of one that is ahead, that it follows. Empty: the
  // store had none.
  std::string etag{};
  bool is_ahead = false;  // of the shared store: it is to be pushed there
  Revision revision{};
  Ancestry ancestry{};

  // The version of what is made from this one.
  SessionVersion Next() const;
  bool operator==(const SessionVersion&) const = default;
};

std::string EncodeSessionVersion(const SessionVersion& version);
// Nothing: it is none.
std::optional<SessionVersion> DecodeSessionVersion(std::string_view bytes);

// Where a session is, and all of a tenant's: names tell of neither.
std::string SessionObjectKey(std::string_view tenant, std::string_view id);
std::string SessionObjectPrefix(std::string_view tenant);
inline constexpr std::string_view kSessionObjects = "sessions/";

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_OBJECT_H_
