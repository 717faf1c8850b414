#include "engine/model/bpe_tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "engine/model/pair_merger.h"
#include "engine/model/pretokenizer.h"
#include "engine/model/vocabulary.h"

namespace xcache {
namespace {

// Vocabularies write each byte as a printable character (GPT-2's
// bytes_to_unicode): printable Latin-1 as itself, the other 68 bytes, in order,
// as U+0100 and up.
class ByteCharacters {
 public:
  ByteCharacters() {
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable =
          (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xff && b != 0xad);
      const uint32_t code = printable ? b : next++;
      AppendUtf8(code, &characters_[b]);
      byte_of_[code] = static_cast<int>(b);
    }
  }
  const std::string& character(uint8_t byte) const { return characters_[byte]; }
  // -1 for a character that stands for no byte.
  int byte_of(uint32_t code) const {
    return code < byte_of_.size() ? byte_of_[code] : -1;
  }

 private:
  std::array<std::string, 256> characters_;
  std::array<int, 0x100 + 68> byte_of_ = [] {
    std::array<int, 0x100 + 68> none;
    none.fill(-1);
    return none;
  }();
};

const ByteCharacters& Bytes() {
  static const auto* const kBytes = new ByteCharacters();
  return *kBytes;
}

// Symbols are token ids; those at vocab_size and above stand for merged text
// that is no token itself, which some vocabularies have on the way to one.
using Symbol = int32_t;

uint64_t PairKey(Symbol left, Symbol right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 |
         static_cast<uint32_t>(right);
}

class BpeTokenizer : public VocabularyTokenizer {
 public:
  absl::Status Init(const GgufFile& gguf);

 protected:
  std::string PieceBytes(TokenId token) const override {
    return bytes_[static_cast<size_t>(token)];
  }
  size_t LongestPiece() const override;
  absl::Status EncodeStretch(std::string_view text, bool continued,
                             std::vector<TokenId>* out) const override;

 private:
  absl::Status ReadMerges(const GgufFile& gguf);
  void EncodeWord(std::string_view word, PairMerger* merger,
                  std::vector<TokenId>* out) const;
  void EmitSymbol(Symbol symbol, std::vector<TokenId>* out) const;

  std::optional<Pretokenizer> pretokenizer_;
  bool whole_words_first_ = false;
  std::array<TokenId, 256> byte_tokens_{};        // -1: the vocabulary lacks it
  std::vector<std::string> bytes_;                // of each token
  absl::flat_hash_map<uint64_t, int32_t> ranks_;  // of pairs, by PairKey
  std::vector<Symbol> merged_;                    // by rank
  // The bytes of symbols from vocab_size on.
  std::vector<std::string> extra_symbols_;
  // Whole words by their bytes, where those come first.
  absl::flat_hash_map<std::string_view, TokenId> whole_words_;
};

// A token's characters as bytes. A character that stands for no byte (some
// vocabularies have such tokens, never made by merges) is kept as it is.
std::string BytesOf(std::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const size_t n = Utf8Length(spelling);
    const int byte = Bytes().byte_of(DecodeUtf8(spelling));
    if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      bytes += spelling.substr(0, n);
    }
    spelling.remove_prefix(n);
  }
  return bytes;
}

absl::Status BpeTokenizer::Init(const GgufFile& gguf) {
  // Files from before the key was there are of no known family.
  std::string pre = "default";
  if (gguf.Has("tokenizer.ggml.pre")) {
    XC_ASSIGN_OR_RETURN(pre, gguf.GetString("tokenizer.ggml.pre"));
  }
  std::string known;
  const PretokenizerSpec* spec = FindPretokenizer(pre, &known);
  if (spec == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat(gguf.path(), ": tokenizer.ggml.pre: expected one of ",
                     known, ", found ", absl::CHexEscape(pre)));
  }
  XC_ASSIGN_OR_RETURN(Pretokenizer pretokenizer, Pretokenizer::Create(*spec));
  pretokenizer_.emplace(std::move(pretokenizer));
  whole_words_first_ = spec->whole_words_first;
  XC_RETURN_IF_ERROR(
      VocabularyTokenizer::Init(gguf, {.add_bos = spec->add_bos}));

  bytes_.resize(static_cast<size_t>(vocab_size()));
  for (TokenId id = 0; id < vocab_size(); ++id) {
    if (vocabulary().type(id) == TokenType::kNormal) {
      bytes_[static_cast<size_t>(id)] = BytesOf(vocabulary().spelling(id));
    }
  }
  for (size_t b = 0; b < 256; ++b) {
    byte_tokens_[b] =
        vocabulary().FindPiece(Bytes().character(static_cast<uint8_t>(b)));
  }
  if (whole_words_first_) {
    for (TokenId id = 0; id < vocab_size(); ++id) {
      if (vocabulary().type(id) == TokenType::kNormal) {
        whole_words_[bytes_[static_cast<size_t>(id)]] = id;
      }
    }
  }
  FindMaxTokenBytes();
  return ReadMerges(gguf);
}

absl::Status BpeTokenizer::ReadMerges(const GgufFile& gguf) {
  XC_ASSIGN_OR_RETURN(const std::span<const std::string> lines,
                      gguf.GetStrings("tokenizer.ggml.merges"));
  if (lines.size() > (size_t{1} << 26)) {
    return absl::InvalidArgumentError(
        absl::StrCat(gguf.path(), ": tokenizer.ggml.merges: expected at most ",
                     size_t{1} << 26, ", found ", lines.size()));
  }
  absl::flat_hash_map<std::string, Symbol> extra_ids;
  const auto symbol_of = [&](std::string_view spelling) -> Symbol {
    const TokenId id = vocabulary().FindPiece(spelling);
    if (id >= 0) return id;
    const auto [it, added] = extra_ids.try_emplace(
        std::string(spelling),
        vocab_size() + static_cast<Symbol>(extra_symbols_.size()));
    if (added) extra_symbols_.push_back(BytesOf(spelling));
    return it->second;
  };
  ranks_.reserve(lines.size());
  merged_.reserve(lines.size());
  std::string merged;
  for (size_t rank = 0; rank < lines.size(); ++rank) {
    const std::string_view line = lines[rank];
    // A space is no byte's character, so the first one is the separator.
    const size_t space = line.find(' ');
    if (space == line.npos || space == 0 || space + 1 == line.size() ||
        FindInvalidUtf8(line) != line.npos) {
      return absl::InvalidArgumentError(absl::StrCat(
          gguf.path(), ": tokenizer.ggml.merges: merge ", rank,
          ": expected two symbols with a space between them, found \"",
          absl::CHexEscape(lines[rank].substr(0, 64)), "\""));
    }
    const std::string_view left = line.substr(0, space);
    const std::string_view right = line.substr(space + 1);
    merged.assign(left).append(right);
    ranks_.try_emplace(PairKey(symbol_of(left), symbol_of(right)),
                       static_cast<int32_t>(rank));
    merged_.push_back(symbol_of(merged));
  }
  return absl::OkStatus();
}

void BpeTokenizer::EmitSymbol(Symbol symbol, std::vector<TokenId>* out) const {
  if (symbol < vocab_size()) {
    out->push_back(symbol);
    return;
  }
  const auto extra = static_cast<size_t>(symbol - vocab_size());
  for (char c : extra_symbols_[extra]) {
    const TokenId id = byte_tokens_[static_cast<uint8_t>(c)];
    if (id >= 0) out->push_back(id);
  }
}

size_t BpeTokenizer::LongestPiece() const {
  for (size_t b = 0; b < byte_tokens_.size(); ++b) {
    const bool in_utf8 = b < 0xc0 || (b > 0xc1 && b < 0xf5);
    if (in_utf8 && byte_tokens_[b] < 0) return 0;
  }
  size_t longest = 1;
  for (TokenId id = 0; id < vocab_size(); ++id) {
    // Merges may lead to tokens that are not used as well.
    longest = std::max(longest, vocabulary().type(id) == TokenType::kUnused
                                    ? BytesOf(vocabulary().spelling(id)).size()
                                    : bytes_[static_cast<size_t>(id)].size());
  }
  return longest;
}

void BpeTokenizer::EncodeWord(std::string_view word, PairMerger* merger,
                              std::vector<TokenId>* out) const {
  if (whole_words_first_) {
    const auto it = whole_words_.find(word);
    if (it != whole_words_.end()) {
      out->push_back(it->second);
      return;
    }
  }
  merger->Clear();
  merger->Reserve(word.size());
  for (char c : word) {
    // Where no token can say a byte, the tokenizers that models were trained
    // with drop it as well.
    const TokenId id = byte_tokens_[static_cast<uint8_t>(c)];
    if (id >= 0) merger->Append(id);
  }
  using Piece = PairMerger::Piece;
  merger->Run(
      [this](const Piece& left, const Piece& right) {
        const auto it = ranks_.find(PairKey(left.value, right.value));
        return it == ranks_.end() ? PairMerger::kNoMerge : it->second;
      },
      [this](int32_t rank, const Piece&, const Piece&) {
        return merged_[static_cast<size_t>(rank)];
      });
  merger->ForEach([&](const Piece& piece) { EmitSymbol(piece.value, out); });
}

absl::Status BpeTokenizer::EncodeStretch(std::string_view text,
                                         bool /*continued*/,
                                         std::vector<TokenId>* out) const {
  // Indices of pieces are 32-bit.
  if (text.size() > (size_t{1} << 30)) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: expected at most 2^30 bytes, found ", text.size()));
  }
  std::vector<std::string_view> words;
  XC_RETURN_IF_ERROR(pretokenizer_->Split(text, &words));
  PairMerger merger;
  for (std::string_view word : words) EncodeWord(word, &merger, out);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateBpeTokenizer(
    const GgufFile& gguf) {
  auto tokenizer = std::make_unique<BpeTokenizer>();
  XC_RETURN_IF_ERROR(tokenizer->Init(gguf));
  return tokenizer;
}

}  // namespace xcache
