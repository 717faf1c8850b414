// Answers that keep to a grammar: compiled once for the vocabulary, walked
// along one answer, and asked at each token which ones may come next. The
// library behind it is xgrammar; nobody else sees it.
#ifndef XCACHE_ENGINE_GRAMMAR_GRAMMAR_H_
#define XCACHE_ENGINE_GRAMMAR_GRAMMAR_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/grammar/grammar_spec.h"
#include "engine/model/tokenizer.h"
#include "engine/types.h"

namespace xcache {

// Compiled, for one vocabulary. Immutable; shared by all answers of its spec.
class Grammar {
 public:
  struct Impl;
  explicit Grammar(std::unique_ptr<const Impl> impl);
  ~Grammar();

  int64_t bytes() const;  // of memory, as far as the library knows them
  const Impl& impl() const { return *impl_; }

 private:
  const std::unique_ptr<const Impl> impl_;
};

class GrammarCompiler {
 public:
  // Sorts the vocabulary: some tenths of a second. `tokenizer` is not needed
  // afterwards.
  explicit GrammarCompiler(const Tokenizer& tokenizer);
  ~GrammarCompiler();

  int64_t bytes() const;  // of memory, for the vocabulary

  // Milliseconds to seconds, on the caller's thread. INVALID_ARGUMENT:
  // CheckGrammar's, a schema or regular expression that is malformed, that
  // nothing matches, that says something which would not be held to, or that
  // would take more than `max_bytes`. Thread-safe.
  absl::StatusOr<std::shared_ptr<const Grammar>> Compile(
      const GrammarSpec& spec, int64_t max_bytes) const;

 private:
  struct Impl;
  const std::unique_ptr<const Impl> impl_;
};

// Where one answer stands. Not thread-safe.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar);
  ~GrammarMatcher();
  GrammarMatcher(const GrammarMatcher&) = delete;
  GrammarMatcher& operator=(const GrammarMatcher&) = delete;

  // The tokens that may come next: token t is bit t % 32 of word t / 32, and
  // those that end a generation are among them where the answer may end. Valid
  // until the next call. Empty: all may come. INTERNAL: none may.
  absl::StatusOr<std::span<const uint32_t>> NextTokens();

  // Goes on by a token of NextTokens(). INTERNAL: it is none of them.
  absl::Status Accept(TokenId token);

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_GRAMMAR_GRAMMAR_H_
