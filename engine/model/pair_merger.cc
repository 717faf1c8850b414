#include "engine/model/pair_merger.h"

#include <algorithm>
#include <functional>

namespace xcache {
namespace {

constexpr size_t kSmall = 256;

template <typename T>
void PushMin(std::vector<T>& heap, T value) {
  heap.push_back(value);
  std::push_heap(heap.begin(), heap.end(), std::greater<T>());
}

template <typename T>
T PopMin(std::vector<T>& heap) {
  std::pop_heap(heap.begin(), heap.end(), std::greater<T>());
  const T value = heap.back();
  heap.pop_back();
  return value;
}

}  // namespace

void PairQueue::Reset(size_t num_pieces) {
  small_ = num_pieces <= kSmall;
  heap_.clear();
  buckets_.clear();
  ranks_.clear();
}

void PairQueue::Push(Pair pair) {
  if (small_) {
    PushMin(heap_, pair);
    return;
  }
  const auto [it, added] = buckets_.try_emplace(pair.rank);
  if (added) PushMin(ranks_, pair.rank);
  Bucket& bucket = it->second;
  if (bucket.taking) {
    PushMin(bucket.late, pair.left);
  } else {
    bucket.early.push_back(pair.left);
  }
}

std::optional<PairQueue::Pair> PairQueue::Pop() {
  if (small_) {
    if (heap_.empty()) return std::nullopt;
    return PopMin(heap_);
  }
  while (!ranks_.empty()) {
    const int32_t rank = ranks_.front();
    const auto it = buckets_.find(rank);
    Bucket& bucket = it->second;
    if (!bucket.taking) {
      bucket.taking = true;
      if (!std::ranges::is_sorted(bucket.early)) {
        std::ranges::sort(bucket.early);
      }
    }
    const bool has_early = bucket.next < bucket.early.size();
    if (!bucket.late.empty() &&
        (!has_early || bucket.late.front() < bucket.early[bucket.next])) {
      return Pair{rank, PopMin(bucket.late)};
    }
    if (has_early) return Pair{rank, bucket.early[bucket.next++]};
    buckets_.erase(it);
    PopMin(ranks_);
  }
  return std::nullopt;
}

}  // namespace xcache
