// What every tokenizer has in common: the tokens of a GGUF with their types,
// and text split at the spellings of those that are not learnt pieces of text.
#ifndef XCACHE_ENGINE_MODEL_VOCABULARY_H_
#define XCACHE_ENGINE_MODEL_VOCABULARY_H_

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/model/gguf.h"
#include "engine/model/tokenizer.h"

namespace xcache {

// tokenizer.ggml.token_type of the GGUF specification.
enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Finds given spellings in text: leftmost, and the longest of those that start
// at one place.
class SpellingMatcher {
 public:
  // Empty ones are ignored; of equal ones the first holds.
  void Add(std::string_view spelling, TokenId id);

  struct Match {
    size_t offset = 0;
    size_t length = 0;  // 0: none
    TokenId id = -1;
  };
  Match FindFrom(std::string_view text, size_t offset) const;

 private:
  // A trie: node 0 is the root; others are found by their parent and byte.
  static uint64_t Edge(uint32_t parent, char byte) {
    return uint64_t{parent} << 8 | static_cast<uint8_t>(byte);
  }
  std::bitset<256> first_bytes_;      // most text has none of them
  std::vector<TokenId> ends_ = {-1};  // by node: the spelling that ends there
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
};

class Vocabulary {
 public:
  // Borrows the strings of `gguf`.
  static absl::StatusOr<Vocabulary> Create(const GgufFile& gguf);

  int size() const { return static_cast<int>(spellings_.size()); }
  std::string_view spelling(TokenId id) const { return spellings_[Index(id)]; }
  TokenType type(TokenId id) const { return types_[Index(id)]; }
  bool Contains(TokenId id) const { return id >= 0 && id < size(); }
  // Control and unknown tokens, and user-defined ones spelled like markers
  // (<|...|>): what text must never become.
  bool IsSpecial(TokenId id) const { return special_[Index(id)]; }
  // The id of a token that is a piece of text (normal, unused), or -1.
  TokenId FindPiece(std::string_view spelling) const;
  TokenId FindSpecial(std::string_view spelling) const;

  // Spellings that plain text becomes tokens of (user-defined ones), and those
  // that templates do (special ones as well).
  const SpellingMatcher& text_matcher() const { return text_matcher_; }
  const SpellingMatcher& special_matcher() const { return special_matcher_; }

  // tokenizer.ggml.<name>_token_id, or -1. INVALID_ARGUMENT where it is not a
  // token.
  static absl::StatusOr<TokenId> ReadId(const GgufFile& gguf,
                                        std::string_view name, int vocab_size);

 private:
  static size_t Index(TokenId id) { return static_cast<size_t>(id); }

  std::vector<std::string_view> spellings_;
  std::vector<TokenType> types_;
  std::vector<bool> special_;
  absl::flat_hash_map<std::string_view, TokenId> pieces_;
  absl::flat_hash_map<std::string_view, TokenId> specials_;
  SpellingMatcher text_matcher_;
  SpellingMatcher special_matcher_;
};

// The parts of a Tokenizer that do not depend on how text becomes pieces.
class VocabularyTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<TokenId>> Encode(
      std::string_view text) const override;
  absl::StatusOr<std::vector<TokenId>> EncodeWithSpecial(
      std::string_view text) const override;
  absl::StatusOr<std::vector<TokenId>> EncodeContinued(
      std::string_view text) const override;
  std::string TokenBytes(TokenId token, bool with_special) const override;
  size_t max_token_bytes() const override { return max_token_bytes_; }
  int vocab_size() const override { return vocabulary_.size(); }
  bool IsSpecial(TokenId token) const override {
    return vocabulary_.Contains(token) && vocabulary_.IsSpecial(token);
  }
  TokenId SpecialId(std::string_view spelling) const override {
    return vocabulary_.FindSpecial(spelling);
  }
  TokenId bos() const override { return bos_; }
  TokenId eos() const override { return eos_; }
  bool add_bos() const override { return add_bos_; }
  bool add_eos() const override { return add_eos_; }
  bool IsEndOfGeneration(TokenId token) const override;

 protected:
  struct Defaults {
    TokenId bos = -1;
    TokenId eos = -1;
    bool add_bos = false;
  };
  // `defaults` hold where the file says nothing.
  absl::Status Init(const GgufFile& gguf, const Defaults& defaults);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  // The bytes that a piece of text (normal, byte, unused) stands for.
  virtual std::string PieceBytes(TokenId token) const = 0;
  // The most bytes of text that a piece stands for; 0 where some text becomes
  // no token. Called once, after the derived class's Init.
  virtual size_t LongestPiece() const = 0;
  void FindMaxTokenBytes();
  // Appends the tokens of `text`, a stretch between special tokens or the ends.
  // `continued`: other text comes before it.
  // REQUIRES: valid UTF-8, not empty.
  virtual absl::Status EncodeStretch(std::string_view text, bool continued,
                                     std::vector<TokenId>* out) const = 0;

 private:
  absl::StatusOr<std::vector<TokenId>> EncodeMatching(
      std::string_view text, bool continued,
      const SpellingMatcher& matcher) const;

  Vocabulary vocabulary_;
  TokenId bos_ = -1;
  TokenId eos_ = -1;
  bool add_bos_ = false;
  bool add_eos_ = false;
  size_t max_token_bytes_ = 0;
  std::vector<TokenId> end_of_generation_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_VOCABULARY_H_
