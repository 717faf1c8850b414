#include "engine/grammar/grammar.h"

#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "xgrammar/xgrammar.h"

namespace xcache {
namespace {

// What the library warns of on this thread while it compiles: parts of a schema
// that it would pass over.
thread_local std::vector<std::string>* warnings = nullptr;

class CatchWarnings {
 public:
  CatchWarnings() { warnings = &caught_; }
  ~CatchWarnings() { warnings = nullptr; }
  const std::vector<std::string>& caught() const { return caught_; }

 private:
  std::vector<std::string> caught_;
};

// A text as the library's grammars spell it.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else {
      out += c;
    }
  }
  return out + '"';
}

// One of them.
std::string AnyOf(const std::vector<std::string>& choices) {
  std::string ebnf;
  for (const std::string& choice : choices) {
    absl::StrAppend(&ebnf, ebnf.empty() ? "root ::= " : " | ", Quoted(choice));
  }
  return ebnf;
}

// An expression for all of the answer: as an automaton without ambiguity, where
// the library's FromRegex makes rules whose masks can take seconds.
std::string Whole(const std::string& regex) {
  return absl::StrCat("root ::= Regex(", Quoted(regex), ", flags=\"\")");
}

// White space between JSON's values, in a row: a model that likes it could
// otherwise go on with it for ever.
constexpr int kMaxWhitespace = 16;

// What the library calls a structural tag.
std::string StructuralTag(const GrammarSpec::Tagged& tagged) {
  const auto text = [](const std::string& value) {
    return nlohmann::json(value).dump();
  };
  std::string tags;
  for (const GrammarSpec::Tag& tag : tagged.tags) {
    absl::StrAppend(&tags, tags.empty() ? "" : ",",
                    "{\"type\":\"tag\",\"begin\":", text(tag.begin),
                    ",\"content\":{\"type\":\"json_schema\",\"json_schema\":",
                    tag.schema, ",\"max_whitespace_cnt\":", kMaxWhitespace,
                    "},\"end\":", text(tag.end), "}");
  }
  const bool free = !tagged.trigger.empty();
  return absl::StrCat(
      "{\"type\":\"structural_tag\",\"format\":{",
      free ? absl::StrCat("\"type\":\"triggered_tags\",\"triggers\":[",
                          text(tagged.trigger), "],\"at_least_one\":false")
           : absl::StrCat("\"type\":\"tags_with_separator\",\"separator\":",
                          text(tagged.separator), ",\"at_least_one\":true"),
      ",\"stop_after_first\":", tagged.once ? "true" : "false", ",\"tags\":[",
      tags, "]}}");
}

xgrammar::Grammar FromTagged(const GrammarSpec::Tagged& tagged) {
  auto made = xgrammar::Grammar::FromStructuralTag(StructuralTag(tagged));
  if (auto* grammar = std::get_if<xgrammar::Grammar>(&made)) return *grammar;
  throw std::runtime_error(
      std::visit([](const auto& error) { return std::string(error.what()); },
                 std::get<xgrammar::StructuralTagError>(made)));
}

xgrammar::Grammar ToGrammar(const GrammarSpec& spec) {
  using Kind = GrammarSpec::Kind;
  switch (spec.kind) {
    case Kind::kRegex:
      return xgrammar::Grammar::FromEBNF(Whole(spec.text));
    case Kind::kChoice:
      return xgrammar::Grammar::FromEBNF(AnyOf(spec.choices));
    case Kind::kTagged:
      if (spec.tagged.otherwise == Kind::kNone) return FromTagged(spec.tagged);
      return xgrammar::Grammar::Union(
          {FromTagged(spec.tagged), ToGrammar(Otherwise(spec))});
    default:
      break;
  }
  const bool any = spec.kind == Kind::kJsonObject;
  return xgrammar::Grammar::FromJSONSchema(
      any ? "{\"type\":\"object\"}" : spec.text, /*any_whitespace=*/true,
      /*indent=*/std::nullopt, /*separators=*/std::nullopt,
      /*strict_mode=*/!any, kMaxWhitespace);
}

std::vector<int32_t> EndTokens(const Tokenizer& tokenizer) {
  std::vector<int32_t> out;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.IsEndOfGeneration(id)) out.push_back(id);
  }
  return out;
}

std::vector<std::string> Bytes(const Tokenizer& tokenizer) {
  std::vector<std::string> out;
  out.reserve(static_cast<size_t>(tokenizer.vocab_size()));
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    out.push_back(tokenizer.TokenBytes(id, /*with_special=*/false));
  }
  return out;
}

}  // namespace

struct Grammar::Impl {
  xgrammar::CompiledGrammar compiled;
};

Grammar::Grammar(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Grammar::~Grammar() = default;

int64_t Grammar::bytes() const {
  return static_cast<int64_t>(impl_->compiled.MemorySizeBytes());
}

struct GrammarCompiler::Impl {
  explicit Impl(const Tokenizer& tokenizer)
      : vocabulary(Bytes(tokenizer), xgrammar::VocabType::RAW,
                   tokenizer.vocab_size(), EndTokens(tokenizer)),
        compiler(vocabulary, /*max_threads=*/1, /*cache_enabled=*/false) {
    for (const std::string& token : vocabulary.GetDecodedVocab()) {
      // Twice, as it is and in order, with what else is kept of each.
      bytes += 2 * static_cast<int64_t>(sizeof(std::string) + token.capacity() +
                                        sizeof(int64_t));
    }
  }

  xgrammar::TokenizerInfo vocabulary;
  mutable xgrammar::GrammarCompiler compiler;
  int64_t bytes = 0;
};

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer)
    : impl_(std::make_unique<const Impl>(tokenizer)) {}
GrammarCompiler::~GrammarCompiler() = default;

int64_t GrammarCompiler::bytes() const { return impl_->bytes; }

absl::StatusOr<std::shared_ptr<const Grammar>> GrammarCompiler::Compile(
    const GrammarSpec& spec, int64_t max_bytes) const {
  XC_RETURN_IF_ERROR(CheckGrammar(spec));
  const char* const what =
      spec.kind == GrammarSpec::Kind::kRegex ? "regex" : "schema";
  try {
    const CatchWarnings warned;
    const auto passed_over = [&] {
      return FieldError(what, "one that an answer can be held to",
                        warned.caught().front());
    };
    const xgrammar::Grammar grammar = ToGrammar(spec);
    if (!warned.caught().empty()) return passed_over();
    auto compiled =
        std::make_shared<const Grammar>(std::make_unique<const Grammar::Impl>(
            Grammar::Impl{impl_->compiler.CompileGrammar(grammar)}));
    if (!warned.caught().empty()) return passed_over();
    if (compiled->bytes() > max_bytes) {
      return FieldError(
          what,
          absl::StrCat("of at most ", max_bytes, " bytes when it is compiled"),
          compiled->bytes());
    }
    return compiled;
  } catch (const std::exception& error) {
    return FieldError(what, "one that an answer can be held to", error.what());
  }
}

struct GrammarMatcher::Impl {
  explicit Impl(std::shared_ptr<const Grammar> g)
      : grammar(std::move(g)), matcher(grammar->impl().compiled) {
    const int num_tokens =
        grammar->impl().compiled.GetTokenizerInfo().GetVocabSize();
    mask.resize(static_cast<size_t>(xgrammar::GetBitmaskSize(num_tokens)));
    shape = static_cast<int64_t>(mask.size());
  }

  const std::shared_ptr<const Grammar> grammar;
  xgrammar::GrammarMatcher matcher;
  std::vector<uint32_t> mask;
  int64_t shape = 0;
};

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar)
    : impl_(std::make_unique<Impl>(std::move(grammar))) {}
GrammarMatcher::~GrammarMatcher() = default;

absl::StatusOr<std::span<const uint32_t>> GrammarMatcher::NextTokens() {
  DLTensor mask{};
  mask.data = impl_->mask.data();
  mask.device = {kDLCPU, 0};
  mask.ndim = 1;
  mask.dtype = xgrammar::GetBitmaskDLType();
  mask.shape = &impl_->shape;
  try {
    if (!impl_->matcher.FillNextTokenBitmask(&mask)) {
      return std::span<const uint32_t>();
    }
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("grammar: ", error.what()));
  }
  for (const uint32_t word : impl_->mask) {
    if (word != 0) return std::span<const uint32_t>(impl_->mask);
  }
  return absl::InternalError("grammar: no token may come next");
}

absl::Status GrammarMatcher::Accept(TokenId token) {
  try {
    if (impl_->matcher.AcceptToken(token)) return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("grammar: ", error.what()));
  }
  return absl::InternalError(
      absl::StrCat("grammar: token ", token, " may not come next"));
}

}  // namespace xcache

// The library's errors and warnings (XGRAMMAR_LOG_CUSTOMIZE): not for stderr.
namespace xgrammar {

[[noreturn]] void LogFatalImpl(const std::string&, int,
                               const std::string& message) {
  throw std::runtime_error(message);
}

void LogMessageImpl(const std::string&, int, int, const std::string& message) {
  if (xcache::warnings != nullptr) xcache::warnings->push_back(message);
}

}  // namespace xgrammar
