// A session's manifest: everything that a conversation is, but its pages'
// bytes. One binary record (FORMAT.md), whole or not at all. Knows no database.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_RECORD_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_RECORD_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cachestore/page_key.h"
#include "engine/base/sha256.h"

namespace xcache {

inline constexpr uint16_t kSessionFormatVersion = 2;

struct SessionMessage {
  uint8_t role = 0;  // the caller's numbering
  std::string content;
  // The tokens of the message, template included: [token_begin, token_end).
  uint32_t token_begin = 0;
  uint32_t token_end = 0;

  bool operator==(const SessionMessage&) const = default;
};

struct SessionRecord {
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
  std::vector<int32_t> tokens;
  std::vector<SessionMessage> messages;
  std::vector<PageKey> page_keys;  // of the sealed blocks, in order
  uint64_t page_bytes = 0;         // of these pages; 0: not known (format 1)
  // Whatever else the caller wants to keep, in its order.
  std::vector<std::pair<std::string, std::string>> settings;

  bool operator==(const SessionRecord&) const = default;
};

std::string EncodeSessionRecord(const SessionRecord& record);

// Reads format 1 too. DATA_LOSS: not the bytes of a whole record; says where
// and what.
// FAILED_PRECONDITION: intact, but of another format version.
absl::StatusOr<SessionRecord> DecodeSessionRecord(std::string_view bytes);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_RECORD_H_
