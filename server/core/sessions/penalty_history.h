// What penalties look at (rule R9): the last tokens that were said. What a chat
// template puts around messages was not: a penalty on it would keep the model
// from ending its turn, and leave fewer words in the window.
#ifndef XCACHE_SERVER_CORE_SESSIONS_PENALTY_HISTORY_H_
#define XCACHE_SERVER_CORE_SESSIONS_PENALTY_HISTORY_H_

#include <cstddef>
#include <span>
#include <vector>

#include "cachestore/sessions/session_record.h"
#include "engine/model/chat_template.h"
#include "engine/types.h"

namespace xcache {

// The last `n` tokens of the messages' texts, in order. `tokens` are those that
// the messages' offsets are of; `messages` is a conversation from its first
// message on, in two parts.
std::vector<TokenId> PenaltyHistory(const ChatTemplate& chat_template,
                                    std::span<const TokenId> tokens,
                                    std::span<const SessionMessage> before,
                                    std::span<const SessionMessage> added,
                                    size_t n);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_PENALTY_HISTORY_H_
