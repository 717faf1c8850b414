#include "server/core/sessions/penalty_history.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "absl/status/statusor.h"

namespace xcache {
namespace {

// What of a message's tokens is its text: not what the same message has in
// common, at either end, with one that says nothing.
std::span<const TokenId> TextTokens(const ChatTemplate& chat_template,
                                    std::span<const TokenId> message,
                                    uint8_t role, size_t index) {
  const absl::StatusOr<std::vector<TokenId>> frame =
      chat_template.RenderMessage(
          {.role = static_cast<Role>(role), .content = ""}, index);
  if (!frame.ok()) return message;
  const auto [open, end] = std::mismatch(message.begin(), message.end(),
                                         frame->begin(), frame->end());
  message = message.subspan(static_cast<size_t>(open - message.begin()));
  const auto close =
      std::mismatch(message.rbegin(), message.rend(), frame->rbegin(),
                    std::make_reverse_iterator(end))
          .first;
  return message.first(static_cast<size_t>(message.rend() - close));
}

}  // namespace

std::vector<TokenId> PenaltyHistory(const ChatTemplate& chat_template,
                                    std::span<const TokenId> tokens,
                                    std::span<const SessionMessage> before,
                                    std::span<const SessionMessage> added,
                                    size_t n) {
  std::vector<TokenId> reversed;
  for (size_t i = before.size() + added.size(); i > 0 && reversed.size() < n;
       --i) {
    const SessionMessage& message =
        i > before.size() ? added[i - 1 - before.size()] : before[i - 1];
    const std::span<const TokenId> text =
        TextTokens(chat_template,
                   tokens.subspan(message.token_begin,
                                  message.token_end - message.token_begin),
                   message.role, i - 1);
    const size_t taken = std::min(n - reversed.size(), text.size());
    reversed.insert(reversed.end(), text.rbegin(),
                    text.rbegin() + static_cast<ptrdiff_t>(taken));
  }
  std::reverse(reversed.begin(), reversed.end());
  return reversed;
}

}  // namespace xcache
