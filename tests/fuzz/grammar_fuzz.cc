// Any bytes as what an answer is held to. The first byte says what they are: s
// for a schema, r for a regular expression, c for lines to choose from. What
// passes our checks is compiled, and then some answer can be drawn from it.
#include <string>

#include "absl/strings/str_split.h"
#include "engine/grammar/grammar.h"
#include "engine/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/tiny_model.h"

namespace {

using namespace xcache;

const Tokenizer& TinyTokenizer() {
  static const auto model = testing::MakeTinyModel({});
  static const auto tokenizer = *Tokenizer::Create(model->gguf());
  return *tokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const GrammarCompiler compiler(TinyTokenizer());
  // Longer ones are the same, and slower.
  if (size == 0 || size > 600) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  GrammarSpec spec;
  spec.text = text;
  spec.kind = data[0] == 's'   ? GrammarSpec::Kind::kJsonSchema
              : data[0] == 'r' ? GrammarSpec::Kind::kRegex
                               : GrammarSpec::Kind::kChoice;
  if (spec.kind == GrammarSpec::Kind::kChoice) {
    spec.text.clear();
    for (const auto part : absl::StrSplit(text, '\n')) {
      spec.choices.emplace_back(part);
    }
  }
  const auto grammar = compiler.Compile(spec, int64_t{64} << 20);
  if (!grammar.ok()) {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(grammar.status()));
    return 0;
  }
  GrammarMatcher matcher(*grammar);
  for (size_t i = 0; i < 8; ++i) {
    const auto mask = matcher.NextTokens();
    if (!mask.ok() || mask->empty()) break;
    TokenId token = 0;
    const auto words = mask->size();
    const size_t from = (i + data[0]) * 7 % (32 * words);
    for (size_t t = 0; t < 32 * words; ++t) {
      const size_t at = (from + t) % (32 * words);
      if (((*mask)[at / 32] >> (at % 32) & 1u) == 0) continue;
      token = static_cast<TokenId>(at);
      break;
    }
    XCACHE_FUZZ_CHECK(matcher.Accept(token).ok());
    if (TinyTokenizer().IsEndOfGeneration(token)) break;
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {
      R"(s{"type":"object","properties":{"a":{"type":"integer","minimum":3},)"
      R"("b":{"enum":["x",1,null]}},"required":["a"]})",
      R"(s{"$ref":"#/$defs/t","$defs":{"t":{"type":"array","items":)"
      R"({"anyOf":[{"$ref":"#/$defs/t"},{"type":"string","pattern":"^a+$"}]}}}})",
      R"(s{"type":"string","format":"date","maxLength":9})",
      R"(s{"patternProperties":{"^a":{"const":[1,"b"]}},"minProperties":1})",
      R"(r[a-z]{2,5}(\.\d+)?|(x|yz)*)",
      "r^\\w+[^\\s]?.$",
      "r[a-z]{205}(a|?b)",
      "cyes\nno\n\"q\"\\",
  };
}
