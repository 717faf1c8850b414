// How far a codec's logits are from those of the lossless one, and what its
// pages weigh: the measurement behind xcache-eval. Text and files are not its
// business.
#ifndef XCACHE_TESTS_EVAL_EVALUATE_H_
#define XCACHE_TESTS_EVAL_EVALUATE_H_

#include <cstdint>
#include <functional>
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
  int64_t page_bytes = 0;
  int64_t page_tokens = 0;
  int kv_fp16_bytes_per_token = 0;

  double nll() const { return sum_nll / static_cast<double>(tokens); }
  double delta_nll() const {
    return (sum_nll - sum_baseline_nll) / static_cast<double>(tokens);
  }
  double kl() const { return sum_kl / static_cast<double>(tokens); }
  double top1_agreement() const {
    return static_cast<double>(same_top1) / static_cast<double>(tokens);
  }
  double page_bytes_per_token() const {
    return static_cast<double>(page_bytes) / static_cast<double>(page_tokens);
  }
  double ratio() const {
    return kv_fp16_bytes_per_token / page_bytes_per_token();
  }
};

// A list of codec specs: "a:x=1,y=2,b" is "a:x=1,y=2" and "b", since an option
// has a '=' and a codec's name has none before its ':'.
std::vector<std::string> SplitSpecs(std::string_view list);

// Adds one position: logits of the lossless codec and of the codec at hand for
// the same prefix, and the token that follows in the text.
void AddPosition(std::span<const float> baseline, std::span<const float> logits,
                 TokenId next, Evaluation* evaluation);

// Runs every window through kv-fp16 and each of `specs`, side by side. Each
// window starts an empty sequence; all its positions but the first count.
// REQUIRES: windows of at least 2 tokens and at most the context.
absl::StatusOr<std::vector<Evaluation>> Evaluate(
    Engine& engine, const std::vector<std::string>& specs,
    const std::vector<std::vector<TokenId>>& windows,
    const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_TESTS_EVAL_EVALUATE_H_
