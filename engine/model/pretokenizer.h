// Splits text into the words within which byte-level BPE merges, by the regular
// expressions that its vocabulary was trained with.
#ifndef XCACHE_ENGINE_MODEL_PRETOKENIZER_H_
#define XCACHE_ENGINE_MODEL_PRETOKENIZER_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace xcache {

// A family of pre-tokenizers, as tokenizer.ggml.pre names it.
struct PretokenizerSpec {
  std::string_view name;
  // Applied one after the other, each to the words that the one before left;
  // what a pattern does not match is a word of its own.
  std::vector<const char*> patterns;
  // A word that is a token as a whole is not merged from its bytes.
  bool whole_words_first = false;
  bool add_bos = false;  // where the file says nothing
};

// nullptr for a name that is not known; `known` gets the names that are.
const PretokenizerSpec* FindPretokenizer(std::string_view name,
                                         std::string* known);

// Thread-safe.
class Pretokenizer {
 public:
  static absl::StatusOr<Pretokenizer> Create(const PretokenizerSpec& spec);
  Pretokenizer(Pretokenizer&&) noexcept;
  Pretokenizer& operator=(Pretokenizer&&) noexcept;
  ~Pretokenizer();

  // Replaces `words` by those of `text`, views into it that cover it.
  // REQUIRES: valid UTF-8.
  absl::Status Split(std::string_view text,
                     std::vector<std::string_view>* words) const;

 private:
  class Pattern;
  Pretokenizer();

  std::vector<std::unique_ptr<Pattern>> patterns_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_PRETOKENIZER_H_
