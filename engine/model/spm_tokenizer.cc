#include "engine/model/spm_tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/utf8.h"
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
  absl::Status EncodeStretch(std::string_view text, bool continued,
                             std::vector<TokenId>* out) const override;

 private:
  // A stretch of the text; neighbours are linked.
  struct Node {
    size_t offset, length;  // length 0: merged into the one before
    int32_t prev, next;
  };
  struct Candidate {
    float score;
    int32_t left, right;
    size_t length;  // of both together
    // Best score first, then leftmost.
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };

  void AddCandidate(std::string_view text, const std::vector<Node>& nodes,
                    int32_t left, int32_t right,
                    std::vector<Candidate>* heap) const;
  void EmitNode(std::string_view piece, std::vector<TokenId>* out) const;

  bool add_space_prefix_ = true;
  TokenId unknown_ = -1;
  std::vector<float> scores_;
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
  for (size_t i = 0; i < scores.size(); ++i) {
    // A NaN has no place in an order.
    if (std::isnan(scores[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf.path(), ": tokenizer.ggml.scores: token ", i,
                       ": expected a number, found NaN"));
    }
    scores_.push_back(static_cast<float>(scores[i]));
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

void SpmTokenizer::AddCandidate(std::string_view text,
                                const std::vector<Node>& nodes, int32_t left,
                                int32_t right,
                                std::vector<Candidate>* heap) const {
  if (left < 0 || right < 0) return;
  const Node& a = nodes[static_cast<size_t>(left)];
  const Node& b = nodes[static_cast<size_t>(right)];
  const size_t length = a.length + b.length;
  const TokenId id = vocabulary().FindPiece(text.substr(a.offset, length));
  if (id < 0) return;
  heap->push_back({scores_[static_cast<size_t>(id)], left, right, length});
  std::push_heap(heap->begin(), heap->end());
}

void SpmTokenizer::EmitNode(std::string_view piece,
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
  // Node indices are 32-bit.
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

  std::vector<Node> nodes;
  for (size_t at = 0; at < text.size();) {
    const size_t length = Utf8Length(std::string_view(text).substr(at));
    const auto index = static_cast<int32_t>(nodes.size());
    nodes.push_back({at, length, index - 1, index + 1});
    at += length;
  }
  nodes.back().next = -1;
  std::vector<Candidate> heap;
  for (size_t i = 0; i + 1 < nodes.size(); ++i) {
    AddCandidate(text, nodes, static_cast<int32_t>(i), nodes[i].next, &heap);
  }
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    // Stale once either side has merged: lengths only grow, or become 0.
    Node& left = nodes[static_cast<size_t>(best.left)];
    Node& right = nodes[static_cast<size_t>(best.right)];
    if (left.length == 0 || right.length == 0 ||
        left.length + right.length != best.length) {
      continue;
    }
    left.length = best.length;
    right.length = 0;
    left.next = right.next;
    if (left.next >= 0) {
      nodes[static_cast<size_t>(left.next)].prev = best.left;
    }
    AddCandidate(text, nodes, left.prev, best.left, &heap);
    AddCandidate(text, nodes, best.left, left.next, &heap);
  }
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next) {
    const Node& node = nodes[static_cast<size_t>(i)];
    EmitNode(std::string_view(text).substr(node.offset, node.length), out);
  }
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
