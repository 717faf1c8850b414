// A session's messages and the tokens that they are: rendered when they are
// new, tokenized anew for another model, and cut down to the last ones where a
// context is full (rule R8). Knows records and templates; no store, no engine.
#ifndef XCACHE_SERVER_CORE_SESSIONS_CONVERSATION_H_
#define XCACHE_SERVER_CORE_SESSIONS_CONVERSATION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "cachestore/sessions/session_record.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"

namespace xcache {

std::vector<ChatMessage> MessagesOf(const SessionRecord& record);
uint64_t CountAnswers(const SessionRecord& record);

// Bytes of messages' text, without the white space around each, which templates
// may trim.
template <typename Messages>
size_t TextBytes(const Messages& messages) {
  size_t num_bytes = 0;
  for (const auto& message : messages) {
    num_bytes += absl::StripAsciiWhitespace(message.content).size();
  }
  return num_bytes;
}

// Appends the tokens of `messages`, the first of which is the `first_index`-th
// of its conversation, and to `rendered`, where it is not null, the messages
// with their places.
absl::Status Render(const ChatTemplate& chat_template,
                    std::span<const ChatMessage> messages, size_t first_index,
                    std::vector<TokenId>* tokens,
                    std::vector<SessionMessage>* rendered);

// Makes all tokens anew from the messages' text. Its answers' tokens are then
// no longer those that a model sampled: IsRetokenized().
// INVALID_ARGUMENT: the template does not take these roles in this order.
absl::Status Retokenize(const ChatTemplate& chat_template,
                        SessionRecord* record);

// Whether all tokens of `record`, which may come from anywhere, are what this
// template and tokenizer make of its messages; of an answer, what they make it
// read from. REQUIRES: the messages' places lie within the tokens, and every
// token is of the vocabulary.
bool TokensMatchText(const ChatTemplate& chat_template,
                     const Tokenizer& tokenizer, const SessionRecord& record);

// The messages that stay where the system prompt and the last `keep` others
// are: of those the ones from a user's on, so that roles stay in order.
std::vector<size_t> LastMessages(const SessionRecord& record, uint64_t keep);

// `record` had `num_pages` pages before it lost some of them.
void ScalePageBytes(size_t num_pages, SessionRecord* record);

// Erases all messages from the `num_messages`-th on, which there are more of
// than that, or as many.
void KeepFirstMessages(size_t num_messages, SessionRecord* record);

// Puts a system prompt in place of the one that the conversation has or has
// not; empty: it has none then. Tokens stay as in KeepMessages. Where it is
// that already, nothing changes. INVALID_ARGUMENT: the template does not take
// it.
absl::Status ReplaceSystemPrompt(const ChatTemplate& chat_template,
                                 const std::string& text,
                                 SessionRecord* record);

// Erases all messages but those of `kept` (ascending). Their tokens stay as
// they are stored wherever the template renders a message alike in its new
// place; others (the first user's, where a default system prompt comes before
// it) are rendered there. Page keys stay as far as nothing before them changed.
absl::Status KeepMessages(const ChatTemplate& chat_template,
                          std::span<const size_t> kept, SessionRecord* record);

// That an answer's tokens were once made anew from its text is a setting of the
// session's (SessionRecord::settings).
bool IsRetokenized(const SessionRecord& record);
void MarkRetokenized(SessionRecord* record);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_CONVERSATION_H_
