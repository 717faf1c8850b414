// Text to token ids and back, as the model's GGUF describes it.
#ifndef XCACHE_ENGINE_MODEL_TOKENIZER_H_
#define XCACHE_ENGINE_MODEL_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/gguf.h"
#include "engine/types.h"

namespace xcache {

// Thread-safe: all methods are const and share no mutable state.
class Tokenizer {
 public:
  // INVALID_ARGUMENT: missing or malformed vocabulary; UNIMPLEMENTED: a
  // tokenizer model or pre-tokenizer that is not known, with those that are.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(
      const GgufFile& gguf);
  virtual ~Tokenizer() = default;

  // The ids of plain text. Text never becomes a special (control) token, also
  // where it spells one (rule R8). Invalid UTF-8 is INVALID_ARGUMENT, with the
  // offset of the byte.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(
      std::string_view text) const = 0;
  // The same, where spellings of special tokens do become them: for templates
  // and for raw prompts that ask for it.
  virtual absl::StatusOr<std::vector<TokenId>> EncodeWithSpecial(
      std::string_view text) const = 0;

  // Encode, of text that goes on from other text: where the tokenizer puts a
  // space before text (SentencePiece does), it does not here.
  virtual absl::StatusOr<std::vector<TokenId>> EncodeContinued(
      std::string_view text) const {
    return Encode(text);
  }

  // A token's bytes; not necessarily whole UTF-8 characters. Special tokens
  // give their spelling if `with_special`, else nothing.
  virtual std::string TokenBytes(TokenId token, bool with_special) const = 0;
  std::string Decode(std::span<const TokenId> tokens,
                     bool with_special = false) const;

  // No token stands for more bytes of text than this: text of n bytes is at
  // least n / max_token_bytes() tokens, which costs nothing to know. 0: not
  // known, as some text becomes no token.
  virtual size_t max_token_bytes() const { return 0; }
  virtual int vocab_size() const = 0;
  virtual bool IsSpecial(TokenId token) const = 0;
  // The id of a special token's spelling, or -1.
  virtual TokenId SpecialId(std::string_view spelling) const = 0;
  virtual TokenId bos() const = 0;   // -1: none
  virtual TokenId eos() const = 0;   // -1: none
  virtual bool add_bos() const = 0;  // raw text starts with BOS
  // A text that is not to go on ends with EOS.
  virtual bool add_eos() const { return false; }
  // Ends a generation: EOS, end of turn, and their like.
  virtual bool IsEndOfGeneration(TokenId token) const = 0;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_TOKENIZER_H_
