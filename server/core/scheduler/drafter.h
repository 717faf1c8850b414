// What an answer may say next, taken from the conversation's own text: what
// came after its last tokens where they stood before. One for each request,
// whose text teaches it how often such a draft is right. Runs nothing, and what
// it says never changes an answer (rule R9), only how soon that is there.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_DRAFTER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_DRAFTER_H_

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "engine/types.h"

namespace xcache {

class Drafter {
 public:
  // A step of 16 rows is as long as three of one; more are rarely all right.
  static constexpr size_t kMostTokens = 15;

  // Looks for the longest end of `context` that stands in it once more, the
  // last of equally long ones, and drafts what came after it there. Linear in
  // the context: microseconds.
  void Look(std::span<const TokenId> context);
  // The draft, kMostTokens and one more, or none.
  std::span<const TokenId> tokens() const { return draft_; }
  // How likely token i of it follows, once those before it do. In (0, 1).
  double chance(size_t i) const { return chances_[ClassOf(matched_ + i)]; }
  // The next token after what Look() saw, and then those after it: where they
  // are the draft's, and where no more, is what chances are learned from.
  void Follow(TokenId token);

 private:
  // By the length of what matches: 1, 2, 3, 4, 5-6, 7-8, 9-12, 13 and more.
  static constexpr size_t kClasses = 8;
  static size_t ClassOf(size_t length);

  std::vector<TokenId> draft_;
  size_t matched_ = 0;   // tokens
  size_t followed_ = 0;  // of the draft, that came
  // At first as in prose.
  std::array<double, kClasses> chances_ = {0.1, 0.25, 0.4, 0.5,
                                           0.6, 0.7,  0.8, 0.9};
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_DRAFTER_H_
