// A session's manifest: everything that a conversation is, but its pages'
// bytes. One binary record (FORMAT.md), whole or not at all; its beginning, the
// head, can be read by itself. Knows no database.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_RECORD_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cachestore/durability.h"
#include "cachestore/page_key.h"
#include "engine/base/sha256.h"

namespace xcache {

// The latest. A record without `version` is written as one of format 2, which
// is all that tells the two apart.
inline constexpr uint16_t kSessionFormatVersion = 3;

struct SessionMessage {
  uint8_t role = 0;  // the caller's numbering
  std::string content;
  // The tokens of the message, template included: [token_begin, token_end).
  uint32_t token_begin = 0;
  uint32_t token_end = 0;

  bool operator==(const SessionMessage&) const = default;
};

// What its head says, and no more than that.
struct SessionHead {
  std::string tenant;  // at most 255 bytes
  std::string id;      // 1 to 255 bytes
  std::string title;
  int64_t create_ms = 0;  // Unix time
  int64_t update_ms = 0;
  int64_t expire_ms = 0;  // 0: never
  int64_t ttl_ms = 0;     // time after the last turn; 0: none
  std::string codec;      // canonical spec
  Digest cache_fp{};
  Digest model_fp{};
  std::string numerics_id;
  uint64_t turn = 0;  // completed turns
  bool pinned = false;
  uint64_t page_bytes = 0;  // of all its pages; 0: not known (format 1)
  // Which version of the session this is, or follows, in a shared store; opaque
  // to whoever has it. Empty: of none.
  std::string version;

  bool operator==(const SessionHead&) const = default;
};

struct SessionRecord : SessionHead {
  std::vector<int32_t> tokens;
  std::vector<SessionMessage> messages;
  std::vector<PageKey> page_keys;  // of the sealed blocks, in order
  // Whatever else the caller wants to keep, in its order.
  std::vector<std::pair<std::string, std::string>> settings;

  bool operator==(const SessionRecord&) const = default;
};

// Whether its time was over at `now_ms`. A pinned session's never is.
bool IsExpired(const SessionHead& session, int64_t now_ms);

// A session without its tokens, messages and keys.
struct SessionSummary : SessionHead {
  uint64_t num_tokens = 0;
  uint64_t num_messages = 0;
  uint64_t num_pages = 0;
  PageKey last_page{};  // the root's: it has none
  // Of the latest manifest; kNone: that cannot be read.
  Durability durability = Durability::kNone;
  bool damaged = false;  // the manifest cannot be read: Load says why

  bool operator==(const SessionSummary&) const = default;
};
// What there is to say of a record, wherever it is: not durable, not damaged.
SessionSummary SummaryOf(const SessionRecord& record);

// A session's key on disk. REQUIRES: tenant and id of at most 255 bytes.
std::string SessionKeyBytes(std::string_view tenant, std::string_view id);
// Tenant and id alone are set. Nothing: not the key of a session.
std::optional<SessionSummary> ParseSessionKey(std::string_view key);

// Whether there can be such a session: an id of 1 to 255 bytes, a tenant of at
// most 255.
bool IsSessionName(std::string_view tenant, std::string_view id);
// INVALID_ARGUMENT: no record can be so, and how it would have to be.
absl::Status CheckSessionRecord(const SessionRecord& record);

std::string EncodeSessionRecord(const SessionRecord& record);

// Reads formats 1 and 2 too. DATA_LOSS: not the bytes of a whole record, or,
// where `key` is given, of another session than that; says where and what.
// FAILED_PRECONDITION: intact, but of another format version.
absl::StatusOr<SessionRecord> DecodeSessionRecord(std::string_view bytes,
                                                  std::string_view key = {});

// The bytes of the head of a manifest of today's version; what comes of other
// bytes, DecodeSessionHead() refuses.
std::string_view HeadOf(std::string_view manifest);
// Of a head, or of a manifest, whose head must be whole, no more. Errors as
// above.
absl::StatusOr<SessionSummary> DecodeSessionHead(std::string_view bytes,
                                                 std::string_view key = {});

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_RECORD_H_
