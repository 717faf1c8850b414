#include "server/core/scheduler/drafter.h"

#include <algorithm>
#include <iterator>

namespace xcache {
namespace {

// A longer match says no more.
constexpr size_t kLongest = 16;

// Half of a chance's weight is in its last eleven draws (0.94^11 = 0.51).
constexpr double kNewWeight = 0.06;

}  // namespace

size_t Drafter::ClassOf(size_t length) {
  constexpr size_t kLast[kClasses - 1] = {1, 2, 3, 4, 6, 8, 12};
  return static_cast<size_t>(
      std::lower_bound(std::begin(kLast), std::end(kLast), length) -
      std::begin(kLast));
}

void Drafter::Look(std::span<const TokenId> context) {
  draft_.clear();
  matched_ = followed_ = 0;
  const size_t n = context.size();
  size_t next = 0;  // after the match
  for (size_t end = n; end-- > 1 && matched_ < kLongest;) {
    size_t length = 0;
    while (length < std::min(end, kLongest) &&
           context[end - 1 - length] == context[n - 1 - length]) {
      ++length;
    }
    if (length <= matched_) continue;
    matched_ = length;
    next = end;
  }
  if (matched_ == 0) return;
  // Where the context ends the draft goes on with itself.
  for (size_t i = 0; i <= kMostTokens; ++i, ++next) {
    draft_.push_back(next < n ? context[next] : draft_[next - n]);
  }
}

void Drafter::Follow(TokenId token) {
  if (followed_ >= draft_.size()) return;
  const bool right = draft_[followed_] == token;
  double& chance = chances_[ClassOf(matched_ + followed_)];
  chance += kNewWeight * ((right ? 1.0 : 0.0) - chance);
  followed_ = right ? followed_ + 1 : draft_.size();
}

}  // namespace xcache
