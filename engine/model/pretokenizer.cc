#include "engine/model/pretokenizer.h"

#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace xcache {
namespace {

// The patterns of the models' own tokenizer.json. White space there is
// Unicode's White_Space, which is spelled out: PCRE2's \s has U+180E, which has
// not been white space since Unicode 6.3, and lacks U+0085 in a class.
#define XC_SPACES                                                  \
  "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}" \
  "\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define XC_S "[" XC_SPACES "]"
#define XC_NOT_S "[^" XC_SPACES "]"

// GPT-2's: English contractions, then runs of letters, of numbers and of other
// characters, each with the space before it; trailing white space.
constexpr char kGpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d"
    "| ?\\p{L}+| ?\\p{N}+| ?[^" XC_SPACES
    "\\p{L}\\p{N}]+"
    "|" XC_S "+(?!" XC_NOT_S ")|" XC_S "+";

constexpr char kDigit[] = "\\p{N}";

// Since cl100k: contractions in any case, a letter run with one character of
// any other kind before it, `NUMBERS` digits together, line ends.
#define XC_CL100K(NUMBERS)                                    \
  "'(?i:s|t|re|ve|m|ll|d)"                                    \
  "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" NUMBERS "| ?[^" XC_SPACES \
  "\\p{L}\\p{N}]+[\\r\\n]*|" XC_S                             \
  "*[\\r\\n]+"                                                \
  "|" XC_S "+(?!" XC_NOT_S ")|" XC_S "+"

const PretokenizerSpec kSpecs[] = {
    {.name = "gpt-2", .patterns = {kGpt2}},
    {.name = "smollm", .patterns = {kDigit, kGpt2}},
    {.name = "llama-bpe",
     .patterns = {XC_CL100K("\\p{N}{1,3}")},
     .whole_words_first = true,
     .add_bos = true},
    {.name = "qwen2", .patterns = {XC_CL100K("\\p{N}")}},
};

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

using MatchData = std::unique_ptr<pcre2_match_data, FreeMatchData>;

std::string ErrorText(int code) {
  PCRE2_UCHAR8 text[256] = {};
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

const PretokenizerSpec* FindPretokenizer(std::string_view name,
                                         std::string* known) {
  known->clear();
  for (const PretokenizerSpec& spec : kSpecs) {
    if (spec.name == name) return &spec;
    absl::StrAppend(known, known->empty() ? "" : ", ", std::string(spec.name));
  }
  return nullptr;
}

class Pretokenizer::Pattern {
 public:
  static absl::StatusOr<std::unique_ptr<Pattern>> Create(const char* regex) {
    auto pattern = std::unique_ptr<Pattern>(new Pattern());
    int error = 0;
    PCRE2_SIZE offset = 0;
    pattern->code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex),
                                   PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                   &error, &offset, nullptr);
    if (pattern->code_ == nullptr) {
      return absl::InternalError(absl::StrCat("pattern ", regex, ", offset ",
                                              offset, ": ", ErrorText(error)));
    }
    // Where there is no JIT (another CPU, memory that may not be executable),
    // pcre2_match interprets the pattern: slower, with the same result.
    pcre2_jit_compile(pattern->code_, PCRE2_JIT_COMPLETE);
    pattern->context_ = pcre2_match_context_create(nullptr);
    if (pattern->context_ == nullptr) {
      return absl::ResourceExhaustedError("no memory for a match context");
    }
    // The patterns take time linear in the text; the default limit of 10
    // million steps would fail on long runs of one kind.
    pcre2_set_match_limit(pattern->context_,
                          std::numeric_limits<uint32_t>::max());
    return pattern;
  }
  ~Pattern() {
    pcre2_match_context_free(context_);
    pcre2_code_free(code_);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  absl::StatusOr<MatchData> NewMatchData() const {
    MatchData data(pcre2_match_data_create_from_pattern(code_, nullptr));
    if (data == nullptr) {
      return absl::ResourceExhaustedError("no memory for a match");
    }
    return data;
  }

  absl::Status Split(std::string_view text, const MatchData& data,
                     std::vector<std::string_view>* words) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    size_t at = 0;
    while (at < text.size()) {
      const int rc = pcre2_match(code_, subject, text.size(), at,
                                 PCRE2_NO_UTF_CHECK, data.get(), context_);
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0) {
        return absl::ResourceExhaustedError(
            absl::StrCat("splitting text into words, at byte ", at, " of ",
                         text.size(), ": ", ErrorText(rc)));
      }
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
      if (ends[1] <= at) break;  // no pattern of ours matches nothing
      if (ends[0] > at) words->push_back(text.substr(at, ends[0] - at));
      words->push_back(text.substr(ends[0], ends[1] - ends[0]));
      at = ends[1];
    }
    if (at < text.size()) words->push_back(text.substr(at));
    return absl::OkStatus();
  }

 private:
  Pattern() = default;
  pcre2_code* code_ = nullptr;
  pcre2_match_context* context_ = nullptr;
};

Pretokenizer::Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;
Pretokenizer& Pretokenizer::operator=(Pretokenizer&&) noexcept = default;
Pretokenizer::~Pretokenizer() = default;

absl::StatusOr<Pretokenizer> Pretokenizer::Create(
    const PretokenizerSpec& spec) {
  Pretokenizer pretokenizer;
  for (const char* regex : spec.patterns) {
    XC_ASSIGN_OR_RETURN(std::unique_ptr<Pattern> pattern,
                        Pattern::Create(regex));
    pretokenizer.patterns_.push_back(std::move(pattern));
  }
  return pretokenizer;
}

absl::Status Pretokenizer::Split(std::string_view text,
                                 std::vector<std::string_view>* words) const {
  words->assign(1, text);
  std::vector<std::string_view> pieces;
  for (const auto& pattern : patterns_) {
    pieces.clear();
    XC_ASSIGN_OR_RETURN(const MatchData data, pattern->NewMatchData());
    for (std::string_view word : *words) {
      XC_RETURN_IF_ERROR(pattern->Split(word, data, &pieces));
    }
    words->swap(pieces);
  }
  return absl::OkStatus();
}

}  // namespace xcache
