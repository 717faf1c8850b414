// What an answer is to be held to, as a client says it: checked, not compiled.
#ifndef XCACHE_ENGINE_GRAMMAR_GRAMMAR_SPEC_H_
#define XCACHE_ENGINE_GRAMMAR_GRAMMAR_SPEC_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace xcache {

// Limits that keep a compilation within seconds, whoever asks for it.
inline constexpr size_t kMaxSchemaBytes = size_t{64} << 10;
inline constexpr int kMaxSchemaDepth = 64;
inline constexpr size_t kMaxSchemaValues = 4096;  // values within it
inline constexpr size_t kMaxRegexBytes = 4096;
inline constexpr int kMaxRegexDepth = 32;  // of parentheses
inline constexpr size_t kMaxTags = 128;
inline constexpr size_t kMaxChoices = 1024;
inline constexpr size_t kMaxChoicesBytes = size_t{64} << 10;  // all of them
// What minItems, maxLength and their like may be; and the positions of all
// regular expressions, one for each character or class, as often as "{2,9}"
// says that it comes.
inline constexpr int kMaxRepeats = 1000;
// Of these positions, those that may be left out ("?", "*", "+" and "{2,9}" at
// its end), of an expression with more than one such place and of all of them
// in a schema: automata of them grow fast. Those of "." and of "[^...]" count
// as four. Within JSON an expression that is not of printable ASCII alone is
// walked as rules, which is slower: there positions are eight times as many.
inline constexpr int kMaxOptional = 128;
inline constexpr int kMaxAllOptional = 256;

struct GrammarSpec {
  enum class Kind {
    kNone,        // any text
    kJsonObject,  // any JSON object
    kJsonSchema,  // `text`: the schema
    kRegex,       // `text`: matches the whole answer
    kChoice,      // one of `choices`
    kTagged,      // `tagged`
  };
  // A text's parts that are marked.
  struct Tag {
    std::string begin, schema, end;
    bool operator==(const Tag&) const = default;
  };
  struct Tagged {
    std::vector<Tag> tags;
    // Where it is not empty, any text may come, and each of its parts that
    // begins so is a tag; else there are tags alone, one at least.
    std::string trigger;
    std::string separator;  // of tags, where there is nothing else
    bool once = false;      // one tag at most
    // What an answer without tags is held to, with the spec's `text` or
    // `choices`; then there is no trigger. kNone: there is no such answer.
    Kind otherwise = Kind::kNone;
    bool operator==(const Tagged&) const = default;
  };
  Kind kind = Kind::kNone;
  std::string text;
  std::vector<std::string> choices;
  Tagged tagged;

  bool operator==(const GrammarSpec&) const = default;
};

// INVALID_ARGUMENT: over a limit, no UTF-8, a schema that is no JSON. What the
// compiler does not take is told when it is compiled.
absl::Status CheckGrammar(const GrammarSpec& spec);

// What an answer without tags is held to.
GrammarSpec Otherwise(const GrammarSpec& spec);

// The same for equal specs alone.
std::string GrammarKey(const GrammarSpec& spec);

}  // namespace xcache

#endif  // XCACHE_ENGINE_GRAMMAR_GRAMMAR_SPEC_H_
