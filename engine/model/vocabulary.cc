#include "engine/model/vocabulary.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"

namespace xcache {
namespace {

// Special tokens that end a turn whatever the file says of EOS: models name one
// token EOS and end their answers with another.
constexpr std::string_view kEndSpellings[] = {
    "</s>",       "<|endoftext|>", "<|end_of_text|>", "<|im_end|>",
    "<|eot_id|>", "<|eom_id|>",    "<|end|>",         "<end_of_turn>",
    "<|EOT|>",    "<EOT>"};

bool LooksLikeMarker(std::string_view spelling) {
  return spelling.size() > 4 && spelling.starts_with("<|") &&
         spelling.ends_with("|>");
}

}  // namespace

void SpellingMatcher::Add(std::string_view spelling, TokenId id) {
  if (spelling.empty()) return;
  first_bytes_.set(static_cast<uint8_t>(spelling[0]));
  uint32_t node = 0;
  for (const char byte : spelling) {
    const auto [it, added] = edges_.try_emplace(
        Edge(node, byte), static_cast<uint32_t>(ends_.size()));
    if (added) ends_.push_back(-1);
    node = it->second;
  }
  if (ends_[node] < 0) ends_[node] = id;
}

SpellingMatcher::Match SpellingMatcher::FindFrom(std::string_view text,
                                                 size_t offset) const {
  for (size_t at = offset; at < text.size(); ++at) {
    if (!first_bytes_[static_cast<uint8_t>(text[at])]) continue;
    Match longest{at, 0, -1};
    uint32_t node = 0;
    for (size_t i = at; i < text.size(); ++i) {
      const auto it = edges_.find(Edge(node, text[i]));
      if (it == edges_.end()) break;
      node = it->second;
      if (ends_[node] >= 0) longest = {at, i + 1 - at, ends_[node]};
    }
    if (longest.length > 0) return longest;
  }
  return {text.size(), 0, -1};
}

absl::StatusOr<Vocabulary> Vocabulary::Create(const GgufFile& gguf) {
  XC_ASSIGN_OR_RETURN(const std::span<const std::string> tokens,
                      gguf.GetStrings("tokenizer.ggml.tokens"));
  constexpr size_t kMaxTokens = 1 << 24;
  if (tokens.empty() || tokens.size() > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(gguf.path(), ": tokenizer.ggml.tokens: expected 1 to ",
                     kMaxTokens, " tokens, found ", tokens.size()));
  }
  std::vector<int64_t> types(tokens.size(),
                             static_cast<int64_t>(TokenType::kNormal));
  if (gguf.Has("tokenizer.ggml.token_type")) {
    XC_ASSIGN_OR_RETURN(types, gguf.GetInts("tokenizer.ggml.token_type"));
    if (types.size() != tokens.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          gguf.path(), ": tokenizer.ggml.token_type: expected ", tokens.size(),
          " types, one for each token, found ", types.size()));
    }
  }

  Vocabulary v;
  v.spellings_.assign(tokens.begin(), tokens.end());
  v.types_.reserve(tokens.size());
  v.special_.resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] < 1 || types[i] > 6) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf.path(), ": tokenizer.ggml.token_type: token ", i,
                       ": expected 1 to 6, found ", types[i]));
    }
    const auto type = static_cast<TokenType>(types[i]);
    const auto id = static_cast<TokenId>(i);
    const std::string_view spelling = v.spellings_[i];
    v.types_.push_back(type);
    v.special_[i] =
        type == TokenType::kControl || type == TokenType::kUnknown ||
        (type == TokenType::kUserDefined && LooksLikeMarker(spelling));
    if (v.special_[i]) {
      v.specials_[spelling] = id;
      v.special_matcher_.Add(spelling, id);
    } else if (type == TokenType::kUserDefined) {
      v.text_matcher_.Add(spelling, id);
      v.special_matcher_.Add(spelling, id);
    } else if (type != TokenType::kByte) {
      v.pieces_[spelling] = id;
    }
  }
  return v;
}

TokenId Vocabulary::FindPiece(std::string_view spelling) const {
  const auto it = pieces_.find(spelling);
  return it == pieces_.end() ? -1 : it->second;
}

TokenId Vocabulary::FindSpecial(std::string_view spelling) const {
  const auto it = specials_.find(spelling);
  return it == specials_.end() ? -1 : it->second;
}

absl::StatusOr<TokenId> Vocabulary::ReadId(const GgufFile& gguf,
                                           std::string_view name,
                                           int vocab_size) {
  const std::string key =
      absl::StrCat("tokenizer.ggml.", std::string(name), "_token_id");
  if (!gguf.Has(key)) return -1;
  XC_ASSIGN_OR_RETURN(const int64_t id, gguf.GetInt(key));
  if (id == 0xffffffff) return -1;  // how some files write "none"
  if (id < 0 || id >= vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(gguf.path(), ": ", key, ": expected 0 to ", vocab_size - 1,
                     ", found ", id));
  }
  return static_cast<TokenId>(id);
}

absl::Status VocabularyTokenizer::Init(const GgufFile& gguf,
                                       const Defaults& defaults) {
  XC_ASSIGN_OR_RETURN(vocabulary_, Vocabulary::Create(gguf));
  const int n = vocabulary_.size();
  XC_ASSIGN_OR_RETURN(bos_, Vocabulary::ReadId(gguf, "bos", n));
  XC_ASSIGN_OR_RETURN(eos_, Vocabulary::ReadId(gguf, "eos", n));
  if (bos_ < 0 && defaults.bos < n) bos_ = defaults.bos;
  if (eos_ < 0 && defaults.eos < n) eos_ = defaults.eos;
  add_bos_ = defaults.add_bos;
  if (gguf.Has("tokenizer.ggml.add_bos_token")) {
    XC_ASSIGN_OR_RETURN(add_bos_, gguf.GetBool("tokenizer.ggml.add_bos_token"));
  }
  if (bos_ < 0) add_bos_ = false;
  if (eos_ >= 0 && gguf.Has("tokenizer.ggml.add_eos_token")) {
    XC_ASSIGN_OR_RETURN(add_eos_, gguf.GetBool("tokenizer.ggml.add_eos_token"));
  }

  end_of_generation_.push_back(eos_);
  for (const char* name : {"eot", "eom"}) {
    XC_ASSIGN_OR_RETURN(const TokenId id, Vocabulary::ReadId(gguf, name, n));
    end_of_generation_.push_back(id);
  }
  for (std::string_view spelling : kEndSpellings) {
    end_of_generation_.push_back(vocabulary_.FindSpecial(spelling));
  }
  std::erase(end_of_generation_, -1);
  return absl::OkStatus();
}

void VocabularyTokenizer::FindMaxTokenBytes() {
  max_token_bytes_ = LongestPiece();
  if (max_token_bytes_ == 0) return;
  for (TokenId id = 0; id < vocabulary_.size(); ++id) {
    // What matchers find is spelled out.
    if (vocabulary_.IsSpecial(id) ||
        vocabulary_.type(id) == TokenType::kUserDefined) {
      max_token_bytes_ =
          std::max(max_token_bytes_, vocabulary_.spelling(id).size());
    }
  }
}

bool VocabularyTokenizer::IsEndOfGeneration(TokenId token) const {
  return std::ranges::find(end_of_generation_, token) !=
         end_of_generation_.end();
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::Encode(
    std::string_view text) const {
  return EncodeMatching(text, /*continued=*/false, vocabulary_.text_matcher());
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::EncodeContinued(
    std::string_view text) const {
  return EncodeMatching(text, /*continued=*/true, vocabulary_.text_matcher());
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::EncodeWithSpecial(
    std::string_view text) const {
  return EncodeMatching(text, /*continued=*/false,
                        vocabulary_.special_matcher());
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::EncodeMatching(
    std::string_view text, bool continued,
    const SpellingMatcher& matcher) const {
  if (const size_t bad = FindInvalidUtf8(text); bad != text.npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "text: expected UTF-8, found an invalid byte 0x",
        absl::Hex(static_cast<uint8_t>(text[bad]), absl::kZeroPad2),
        " at offset ", bad));
  }
  std::vector<TokenId> out;
  size_t at = 0;
  while (at < text.size()) {
    const SpellingMatcher::Match match = matcher.FindFrom(text, at);
    if (match.offset > at) {
      XC_RETURN_IF_ERROR(EncodeStretch(text.substr(at, match.offset - at),
                                       continued && at == 0, &out));
    }
    if (match.length > 0) out.push_back(match.id);
    at = match.offset + match.length;
  }
  return out;
}

std::string VocabularyTokenizer::TokenBytes(TokenId token,
                                            bool with_special) const {
  if (!vocabulary_.Contains(token)) return "";
  if (vocabulary_.IsSpecial(token)) {
    return with_special ? std::string(vocabulary_.spelling(token)) : "";
  }
  if (vocabulary_.type(token) == TokenType::kUserDefined) {
    return std::string(vocabulary_.spelling(token));
  }
  return PieceBytes(token);
}

std::string Tokenizer::Decode(std::span<const TokenId> tokens,
                              bool with_special) const {
  std::string text;
  for (TokenId token : tokens) text += TokenBytes(token, with_special);
  return text;
}

}  // namespace xcache
