#include "engine/model/spm_tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "engine/model/pair_merger.h"
#include "engine/model/vocabulary.h"

namespace xcache {
namespace {

// U+2581, which stands for a space in vocabularies.
constexpr std::string_view kSpace = "\xe2\x96\x81";

class SpmTokenizer : public VocabularyTokenizer {
 public:
  absl::Status Init(const GgufFile& gguf);

 protected:
  std::string PieceBytes(TokenId token) const override;
  size_t LongestPiece() const override;
  absl::Status EncodeStretch(std::string_view text, bool continued,
                             std::vector<TokenId>* out) const override;

 private:
  void EmitPiece(std::string_view piece, std::vector<TokenId>* out) const;

  bool add_space_prefix_ = true;
  TokenId unknown_ = -1;
  std::vector<int32_t> ranks_;  // of each token's score, the best one's is 0
  size_t longest_ = 0;          // bytes of a spelling
  std::array<TokenId, 256> byte_tokens_{};  // -1: the vocabulary lacks it
  std::vector<int> byte_of_;                // of each token, -1: none
};

// "<0x0A>" as 10; -1 for another spelling.
int ByteOfSpelling(std::string_view spelling) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  if (spelling.size() != 6 || !spelling.starts_with("<0x") ||
      spelling[5] != '>') {
    return -1;
  }
  const int high = digit(spelling[3]), low = digit(spelling[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

absl::Status SpmTokenizer::Init(const GgufFile& gguf) {
  XC_RETURN_IF_ERROR(
      VocabularyTokenizer::Init(gguf, {.bos = 1, .eos = 2, .add_bos = true}));
  XC_ASSIGN_OR_RETURN(unknown_,
                      Vocabulary::ReadId(gguf, "unknown", vocab_size()));
  if (gguf.Has("tokenizer.ggml.add_space_prefix")) {
    XC_ASSIGN_OR_RETURN(add_space_prefix_,
                        gguf.GetBool("tokenizer.ggml.add_space_prefix"));
  }
  XC_ASSIGN_OR_RETURN(const std::span<const double> scores,
                      gguf.GetFloats("tokenizer.ggml.scores"));
  if (scores.size() != static_cast<size_t>(vocab_size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        gguf.path(), ": tokenizer.ggml.scores: expected ", vocab_size(),
        " scores, one for each token, found ", scores.size()));
  }
  std::vector<float> order;
  for (size_t i = 0; i < scores.size(); ++i) {
    // A NaN has no place in an order.
    if (std::isnan(scores[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf.path(), ": tokenizer.ggml.scores: token ", i,
                       ": expected a number, found NaN"));
    }
    order.push_back(static_cast<float>(scores[i]));
  }
  std::ranges::sort(order, std::greater<float>());
  for (double score : scores) {
    ranks_.push_back(static_cast<int32_t>(
        std::ranges::lower_bound(order, static_cast<float>(score),
                                 std::greater<float>()) -
        order.begin()));
  }
  for (TokenId id = 0; id < vocab_size(); ++id) {
    longest_ = std::max(longest_, vocabulary().spelling(id).size());
  }
  byte_tokens_.fill(-1);
  byte_of_.assign(static_cast<size_t>(vocab_size()), -1);
  for (TokenId id = 0; id < vocab_size(); ++id) {
    if (vocabulary().type(id) != TokenType::kByte) continue;
    const int byte = ByteOfSpelling(vocabulary().spelling(id));
    if (byte < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf.path(), ": tokenizer.ggml.tokens: token ", id,
                       ": expected a byte as <0x00>, found another spelling"));
    }
    byte_of_[static_cast<size_t>(id)] = byte;
    byte_tokens_[static_cast<size_t>(byte)] = id;
  }
  FindMaxTokenBytes();
  return absl::OkStatus();
}

std::string SpmTokenizer::PieceBytes(TokenId token) const {
  if (const int byte = byte_of_[static_cast<size_t>(token)]; byte >= 0) {
    return std::string(1, static_cast<char>(byte));
  }
  if (vocabulary().type(token) == TokenType::kUnused) return "";
  std::string_view spelling = vocabulary().spelling(token);
  std::string bytes;
  while (!spelling.empty()) {
    if (spelling.starts_with(kSpace)) {
      bytes.push_back(' ');
      spelling.remove_prefix(kSpace.size());
    } else {
      bytes.push_back(spelling[0]);
      spelling.remove_prefix(1);
    }
  }
  return bytes;
}

// A space is one byte of text and three of a spelling: no piece stands for more
// text than its spelling has.
size_t SpmTokenizer::LongestPiece() const {
  const bool every_byte =
      std::ranges::none_of(byte_tokens_, [](TokenId id) { return id < 0; });
  return every_byte || unknown_ >= 0 ? longest_ : 0;
}

void SpmTokenizer::EmitPiece(std::string_view piece,
                             std::vector<TokenId>* out) const {
  if (const TokenId id = vocabulary().FindPiece(piece); id >= 0) {
    out->push_back(id);
    return;
  }
  for (char c : piece) {
    const TokenId id = byte_tokens_[static_cast<uint8_t>(c)];
    if (id >= 0) {
      out->push_back(id);
    } else if (unknown_ >= 0) {
      out->push_back(unknown_);
    }
  }
}

absl::Status SpmTokenizer::EncodeStretch(std::string_view stretch,
                                         bool continued,
                                         std::vector<TokenId>* out) const {
  // Offsets are 32-bit.
  if (stretch.size() > (size_t{1} << 30)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "text: expected at most 2^30 bytes, found ", stretch.size()));
  }
  std::string text;
  text.reserve(stretch.size() + kSpace.size());
  if (add_space_prefix_ && !continued) text += kSpace;
  for (char c : stretch) {
    if (c == ' ') {
      text += kSpace;
    } else {
      text.push_back(c);
    }
  }

  // A piece's value is its offset; it ends where the next one starts.
  using Piece = PairMerger::Piece;
  PairMerger merger;
  merger.Reserve(text.size());
  const std::string_view all(text);
  for (size_t at = 0; at < all.size(); at += Utf8Length(all.substr(at))) {
    merger.Append(static_cast<int32_t>(at));
  }
  const auto text_of = [&](const Piece& first, const Piece& last) {
    const auto begin = static_cast<size_t>(first.value);
    const size_t end = last.next < 0
                           ? all.size()
                           : static_cast<size_t>(merger.At(last.next).value);
    return all.substr(begin, end - begin);
  };
  merger.Run(
      [&](const Piece& left, const Piece& right) {
        const std::string_view both = text_of(left, right);
        const TokenId id =
            both.size() > longest_ ? -1 : vocabulary().FindPiece(both);
        return id < 0 ? PairMerger::kNoMerge : ranks_[static_cast<size_t>(id)];
      },
      [](int32_t, const Piece& left, const Piece&) { return left.value; });
  merger.ForEach(
      [&](const Piece& piece) { EmitPiece(text_of(piece, piece), out); });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateSpmTokenizer(
    const GgufFile& gguf) {
  auto tokenizer = std::make_unique<SpmTokenizer>();
  XC_RETURN_IF_ERROR(tokenizer->Init(gguf));
  return tokenizer;
}

}  // namespace xcache
