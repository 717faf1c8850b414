// Windows with answers in them, for xcache-eval: what FP16 K/V write after a
// prompt, and facts that stood long before they are asked for.
#ifndef XCACHE_TESTS_EVAL_EVAL_TASKS_H_
#define XCACHE_TESTS_EVAL_EVAL_TASKS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/model/tokenizer.h"
#include "tests/eval/evaluate.h"

namespace xcache {

struct EvalTask {
  std::vector<std::vector<TokenId>> windows;
  std::vector<std::vector<Answer>> answers;  // of each window
};

// Each prompt with the `num_tokens` that kv-fp16 writes after it, of which each
// is the likeliest: one answer. Ends of texts are written like other tokens.
absl::StatusOr<EvalTask> ContinueGreedily(
    Engine& engine, std::vector<std::vector<TokenId>> prompts,
    size_t num_tokens, const ProgressFn& progress);

// Facts of a window, and what lies before the last of them.
inline constexpr size_t kFacts = 4;
inline constexpr double kFactsEnd = 0.25;

// Windows of `text`, in each of which kFacts numbers are told, evenly spread
// over its first kFactsEnd, and asked for at its end, in another order.
// INVALID_ARGUMENT: a window has no room for them.
absl::StatusOr<EvalTask> AskForFacts(
    const Tokenizer& tokenizer, const std::vector<std::vector<TokenId>>& text,
    uint64_t seed);

// A JSON object a line for llamacpp_answers.py --tasks: the window's name,
// size, tokens, and of each answer where it begins and ends.
std::string TaskJsonLines(std::string_view text, const EvalTask& task);

}  // namespace xcache

#endif  // XCACHE_TESTS_EVAL_EVAL_TASKS_H_
