// How far a codec's logits are from those of the lossless one, and what its
// pages weigh: the measurement behind xcache-eval. Text and files are not its
// business.
#ifndef XCACHE_TESTS_EVAL_EVALUATE_H_
#define XCACHE_TESTS_EVAL_EVALUATE_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace xcache {

// What is summed over the positions of all windows for one codec.
struct Evaluation {
  std::string codec;  // canonical spec
  int64_t tokens = 0;
  double sum_nll = 0.0;  // of the text's tokens, nats
  double sum_baseline_nll = 0.0;
  double sum_kl = 0.0;  // KL(kv-fp16 || codec), nats
  int64_t same_top1 = 0;
  int64_t hits = 0;  // positions whose first choice is the window's token
  // Where only answers count: how many there are, how many are hit token by
  // token, and the sum of their shares that are hit before the first miss.
  int64_t answers = 0;
  int64_t whole_answers = 0;
  double sum_prefix_share = 0.0;
  int64_t page_bytes = 0;
  int64_t page_tokens = 0;
  int kv_fp16_bytes_per_token = 0;

  double nll() const { return sum_nll / static_cast<double>(tokens); }
  double baseline_nll() const {
    return sum_baseline_nll / static_cast<double>(tokens);
  }
  double delta_nll() const {
    return (sum_nll - sum_baseline_nll) / static_cast<double>(tokens);
  }
  double kl() const { return sum_kl / static_cast<double>(tokens); }
  double top1_agreement() const {
    return static_cast<double>(same_top1) / static_cast<double>(tokens);
  }
  double prefix_share() const {
    return sum_prefix_share / static_cast<double>(answers);
  }
  double page_bytes_per_token() const {
    return static_cast<double>(page_bytes) / static_cast<double>(page_tokens);
  }
  double ratio() const {
    return kv_fp16_bytes_per_token / page_bytes_per_token();
  }
};

// A list of codec specs, parted by ';' or ','. "a:x=1,y=2,b" is "a:x=1,y=2" and
// "b", since an option has a '=' and a codec's name has none before its ':'.
std::vector<std::string> SplitSpecs(std::string_view list);

// What one position says: the lossless codec's logits for a prefix, as a
// distribution, beside which other codecs' logits are held.
class ReferencePosition {
 public:
  explicit ReferencePosition(std::span<const float> logits);

  // Adds the position to `evaluation`: `logits` of the codec at hand for the
  // same prefix, and the token that follows in the text.
  void Add(std::span<const float> logits, TokenId next,
           Evaluation* evaluation) const;

 private:
  std::vector<float> logits_;
  std::vector<double> p_;
  double log_sum_ = 0.0;
  size_t top_ = 0;
};

// Tokens [begin, end) of a window; begin is not 0.
struct Answer {
  size_t begin = 0, end = 0;
};

struct EvaluateOptions {
  // Each window is fed in so many turns. Between two turns the working set is
  // dropped and made anew: pages are rematerialized, the tail is recomputed.
  int turns = 1;
  // Threads for the distances; the engine has its own.
  int threads = 1;
  // For the working sets of one window. Codecs that do not fit together are
  // measured one after another, each time beside the reference.
  int64_t memory_bytes = int64_t{4} << 30;
  ProgressFn progress = {};
  // Of each window, which of its tokens count, in order; none: all windows' but
  // their first. Whatever a codec would write, as long as it hits it is what
  // stands there: by rule R1 its logits are those of writing it.
  std::vector<std::vector<Answer>> answers = {};
};

// Runs every window through kv-fp16 once and through each of `specs` beside it.
// Each window starts an empty sequence; all its positions but the first count.
// The figures do not depend on `options`.
// REQUIRES: windows of at least 2 tokens and at most the context.
absl::StatusOr<std::vector<Evaluation>> Evaluate(
    Engine& engine, const std::vector<std::string>& specs,
    const std::vector<std::vector<TokenId>>& windows,
    const EvaluateOptions& options);

}  // namespace xcache

#endif  // XCACHE_TESTS_EVAL_EVALUATE_H_
