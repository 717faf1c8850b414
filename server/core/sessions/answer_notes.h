// Notes on a session's answers (AnswerNote), as settings of its manifest
// (SessionRecord::settings): they are committed with the turn, and go with the
// messages that they are of.
#ifndef XCACHE_SERVER_CORE_SESSIONS_ANSWER_NOTES_H_
#define XCACHE_SERVER_CORE_SESSIONS_ANSWER_NOTES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cachestore/sessions/session_record.h"
#include "server/core/request.h"

namespace xcache {

// In the order of their answers. What is no note of ours is passed over.
std::vector<AnswerNote> AnswerNotesOf(const SessionRecord& record);
// Messages up to the answer of that note; empty: all. NOT_FOUND.
absl::StatusOr<uint64_t> EndOfAnswer(const SessionRecord& record,
                                     std::string_view name);
void AddAnswerNote(const AnswerNote& note, SessionRecord* record);
// Those with `num_messages` of at most so many stay.
void KeepAnswerNotes(uint64_t num_messages, SessionRecord* record);
// False: there is none of that name.
bool EraseAnswerNote(std::string_view name, SessionRecord* record);
// So many messages more, or less, come before all answers now.
void ShiftAnswerNotes(int64_t num_messages, SessionRecord* record);

// Bytes of the caller's own that a session keeps.
std::string SessionDataOf(const SessionRecord& record);
void SetSessionData(std::string_view data, SessionRecord* record);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_ANSWER_NOTES_H_
