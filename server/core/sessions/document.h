// A session as a JSON document: what ExportSession gives and ImportSession
// takes, to keep a conversation elsewhere or to bring it to another server.
// Checks a document's form; whether its tokens are what a model makes of its
// messages is not known here.
//
//   {"format": "xcache-session", "version": 1,
//    "id": "customer-17", "title": "Orders", "turn": 3,
//    "create_time_ms": 1700000000000, "update_time_ms": 1700000600000,
//    "ttl_ms": 604800000, "pinned": false,
//    "model_fp": "<64 hexadecimal digits>", "codec": "xquant-gqa:bits=4",
//    "numerics_id": "...", "remat": "resume", "retokenized": false,
//    "messages": [{"role": "user", "content": "Hello", "tokens": [1, 2]}]}
//
// Needed are `format`, `version` and `messages`, each with `role` ("system",
// "user" or "assistant") and `content`. `tokens` are a message's token ids, the
// template's included: all messages have them or none; they count where
// `model_fp` names the server's model. Times are milliseconds of the Unix
// epoch; `ttl_ms` 0: never. A field that is not named here is an error: what a
// later version adds comes with another number.
#ifndef XCACHE_SERVER_CORE_SESSIONS_DOCUMENT_H_
#define XCACHE_SERVER_CORE_SESSIONS_DOCUMENT_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "cachestore/sessions/session_record.h"

namespace xcache {

inline constexpr int kSessionDocumentVersion = 1;
// What a document may hold; a request is bounded by the front end as well.
inline constexpr size_t kMaxDocumentBytes = size_t{16} << 20;
inline constexpr size_t kMaxDocumentMessages = size_t{1} << 16;
inline constexpr size_t kMaxDocumentTokens = size_t{1} << 20;

// `with_tokens` false: the text alone.
std::string WriteSessionDocument(const SessionRecord& record, bool with_tokens);

// The record that a document tells of: no tenant, no cache_fp, no pages.
// Without tokens in the document every message's place is [0, 0).
// INVALID_ARGUMENT: the field, what it may be and what it was. Memory is
// bounded by the document's size, whatever its bytes.
absl::StatusOr<SessionRecord> ParseSessionDocument(std::string_view json);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_DOCUMENT_H_
