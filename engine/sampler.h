// Sampling (rule R9): the next token as a pure function of logits, token
// history, parameters, seed and position. Nothing here keeps state, so a turn
// that is replayed, resumed or moved draws the same tokens.
#ifndef XCACHE_ENGINE_SAMPLER_H_
#define XCACHE_ENGINE_SAMPLER_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"

namespace xcache {

// Defaults change nothing about the distribution, except temperature 0: greedy.
struct SamplingParams {
  float temperature = 0.0f;         // 0: the most likely token
  int top_k = 0;                    // 0: off
  float top_p = 1.0f;               // in (0, 1]
  float min_p = 0.0f;               // in [0, 1]: of the top probability
  float repetition_penalty = 1.0f;  // > 0; divides positive logits (CTRL)
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int penalty_last_n = 64;  // tokens of history that penalties look at
  uint64_t seed = 0;
  // Added to the logits of these tokens, after penalties; in [-100, 100]. A
  // token that the vocabulary does not have is passed over.
  std::vector<std::pair<TokenId, float>> logit_bias;
};
inline constexpr size_t kMaxLogitBias = 1024;

// INVALID_ARGUMENT names the parameter, its range and its value.
absl::Status ValidateSampling(const SamplingParams& params);

// Whether tokens of the history matter.
bool HasPenalty(const SamplingParams& params);

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;  // natural logarithm
};

struct SampledToken {
  TokenId token = 0;
  // Of the model's distribution, before temperature, penalties and filters.
  float logprob = 0.0f;
  // The most likely tokens of that distribution, best first, ties by token id;
  // as many as asked for.
  std::vector<TokenLogprob> top;
};

// Draws the token at `position` (its index in the sequence) from `logits`
// [vocab_size], given the ids before it. The random number is
// Philox4x32-10(key = seed, counter = position). `allowed`, where it is not
// empty: the tokens that may be drawn, a bit each (GrammarMatcher::NextTokens);
// others are as if their logits were -inf after the bias, and one at least is
// allowed.
SampledToken SampleToken(std::span<const float> logits,
                         std::span<const TokenId> history,
                         const SamplingParams& params, int64_t position,
                         int num_top_logprobs,
                         std::span<const uint32_t> allowed = {});

// log-softmax(logits)[token], accumulated in double.
float LogProb(std::span<const float> logits, TokenId token);

}  // namespace xcache

#endif  // XCACHE_ENGINE_SAMPLER_H_
