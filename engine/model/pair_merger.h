// Merges neighbouring pieces of a text: of all pairs that may merge, always
// the one of lowest rank, of equal ranks the leftmost, until none is left. What
// pieces, ranks and merges are is its user's: byte-level BPE has ranks of
// merges, SentencePiece ranks of scores.
//
// Time for n pieces: O(n log n) at worst, and close to n where few ranks have
// many pairs each, as in long runs of one kind, because pairs wait by rank and
// not in one heap of all.
#ifndef XCACHE_ENGINE_MODEL_PAIR_MERGER_H_
#define XCACHE_ENGINE_MODEL_PAIR_MERGER_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace xcache {

// Pairs by rank, then by the index of their left piece.
class PairQueue {
 public:
  struct Pair {
    int32_t rank = 0;
    int32_t left = 0;
    auto operator<=>(const Pair&) const = default;
  };

  // Empties it, for a text of so many pieces.
  void Reset(size_t num_pieces);
  void Push(Pair pair);
  // The first one, taken out.
  std::optional<Pair> Pop();

 private:
  // All pairs of one rank. Most are pushed before the first of them is taken:
  // they are sorted then, once, and for the most part were before.
  struct Bucket {
    std::vector<int32_t> early;  // sorted once `taking`
    size_t next = 0;             // of `early`
    std::vector<int32_t> late;   // pushed while `taking`: a heap
    bool taking = false;
  };

  // Few pairs wait in one heap: a table of ranks costs more than it saves.
  bool small_ = true;
  std::vector<Pair> heap_;
  absl::flat_hash_map<int32_t, Bucket> buckets_;
  std::vector<int32_t> ranks_;  // of all buckets: a heap
};

class PairMerger {
 public:
  static constexpr int32_t kNoMerge = std::numeric_limits<int32_t>::max();

  struct Piece {
    int32_t value = 0;  // its user's
    int32_t prev = -1, next = -1;
    int32_t rank = kNoMerge;  // of merging it with the next one
  };

  // Starts anew.
  void Clear() { pieces_.clear(); }
  void Reserve(size_t num_pieces) { pieces_.reserve(num_pieces); }
  void Append(int32_t value) {
    const auto index = static_cast<int32_t>(pieces_.size());
    if (index > 0) pieces_.back().next = index;
    pieces_.push_back({.value = value, .prev = index - 1});
  }

  // Both get two neighbours: `rank_of` the rank of merging them, or kNoMerge;
  // `merge` the value of both together, given that rank.
  template <typename RankFn, typename MergeFn>
  void Run(const RankFn& rank_of, const MergeFn& merge);

  // Of what is left, in order.
  template <typename Fn>
  void ForEach(const Fn& fn) const {
    for (int32_t i = pieces_.empty() ? -1 : 0; i >= 0; i = At(i).next) {
      fn(At(i));
    }
  }
  // REQUIRES: 0 <= index.
  const Piece& At(int32_t index) const {
    return pieces_[static_cast<size_t>(index)];
  }

 private:
  std::vector<Piece> pieces_;
  PairQueue queue_;
};

template <typename RankFn, typename MergeFn>
void PairMerger::Run(const RankFn& rank_of, const MergeFn& merge) {
  const auto rank = [&](int32_t left) {
    Piece& piece = pieces_[static_cast<size_t>(left)];
    piece.rank = piece.next < 0 ? kNoMerge : rank_of(piece, At(piece.next));
    if (piece.rank != kNoMerge) queue_.Push({piece.rank, left});
  };
  queue_.Reset(pieces_.size());
  for (size_t i = 0; i + 1 < pieces_.size(); ++i) {
    rank(static_cast<int32_t>(i));
  }
  while (const std::optional<PairQueue::Pair> pair = queue_.Pop()) {
    Piece& left = pieces_[static_cast<size_t>(pair->left)];
    // A pair is stale once one of its pieces has merged elsewhere.
    if (left.rank != pair->rank) continue;
    Piece& right = pieces_[static_cast<size_t>(left.next)];
    left.value = merge(pair->rank, left, right);
    left.next = right.next;
    if (right.next >= 0) {
      pieces_[static_cast<size_t>(right.next)].prev = pair->left;
    }
    right.rank = kNoMerge;
    if (left.prev >= 0) rank(left.prev);
    rank(pair->left);
  }
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_PAIR_MERGER_H_
