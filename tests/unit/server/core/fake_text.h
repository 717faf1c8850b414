// A tokenizer of bytes and a chat template for tests of the server's core.
#ifndef XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_TEXT_H_
#define XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_TEXT_H_

#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"
#include "tests/unit/server/core/fake_engine.h"

namespace xcache::testing {

// Some tokens of several bytes: a word of two stops, the parts of a Euro sign
// (E2 82 AC) and of an emoji with text beside them.
inline constexpr std::string_view kWords[] = {", two", "x\xE2\x82", "\xAC y",
                                              "z\xF0\x9F\x98"};
static_assert(kFirstWord + std::size(kWords) == kVocab);

// Token b is byte b; 256 to 259 are special, and then there are words, which
// text is never encoded as.
class FakeTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<TokenId>> Encode(
      std::string_view text) const override {
    std::vector<TokenId> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
  absl::StatusOr<std::vector<TokenId>> EncodeWithSpecial(
      std::string_view text) const override {
    return Encode(text);
  }
  std::string TokenBytes(TokenId token, bool with_special) const override {
    if (token < 256) return std::string(1, static_cast<char>(token));
    if (token >= kFirstWord) {
      return std::string(kWords[static_cast<size_t>(token - kFirstWord)]);
    }
    return with_special ? "<" + std::to_string(token) + ">" : "";
  }
  size_t max_token_bytes() const override { return most_bytes; }
  int vocab_size() const override { return kVocab; }
  bool IsSpecial(TokenId token) const override {
    return token >= 256 && token < kFirstWord;
  }
  TokenId SpecialId(std::string_view) const override { return -1; }
  TokenId bos() const override { return kBos; }
  TokenId eos() const override { return kEnd; }
  bool add_bos() const override { return false; }
  bool IsEndOfGeneration(TokenId token) const override {
    return token == kEnd || token == kOtherEnd;
  }

  size_t most_bytes = 0;  // as if not known
};

// <header> role text <end> newline
class FakeTemplate final : public ChatTemplate {
 public:
  std::string_view family() const override { return "fake"; }
  absl::StatusOr<std::vector<TokenId>> RenderMessage(const ChatMessage& message,
                                                     size_t) const override {
    std::vector<TokenId> ids = {kHeader, "sua"[static_cast<int>(message.role)]};
    for (const char c : message.content) ids.push_back(static_cast<uint8_t>(c));
    ids.push_back(kEnd);
    ids.push_back('\n');
    return ids;
  }
  std::vector<TokenId> AssistantHeader() const override {
    return {kHeader, 'a'};
  }
  std::vector<TokenId> AssistantEnd(bool ended) const override {
    if (ended) return {'\n'};
    return {kEnd, '\n'};
  }
  absl::Status CheckOrder(const std::vector<Role>& history,
                          const std::vector<ChatMessage>& next) const override {
    std::vector<Role> all = history;
    for (const ChatMessage& message : next) all.push_back(message.role);
    for (size_t i = 0; i < all.size(); ++i) {
      const bool repeated = i > 0 && all[i] == all[i - 1];
      if (repeated || (all[i] == Role::kSystem && i > 0)) {
        return absl::InvalidArgumentError("a role is out of place");
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_TEXT_H_
