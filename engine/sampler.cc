// The order of things: penalties, bias, what a grammar allows, temperature,
// top-k, top-p, min-p, then one draw. Candidates are walked in order of token
// id, so a filter that keeps every token changes nothing.
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/philox.h"

namespace xcache {
namespace {

// exp(x) is zero in FP32 below this.
constexpr float kExpUnderflow = -104.0f;

float ExpOrZero(float x) { return x < kExpUnderflow ? 0.0f : std::exp(x); }

// The largest value, NaN aside; -inf if there is none.
float MaxLogit(std::span<const float> logits) {
  float max = -std::numeric_limits<float>::infinity();
  for (float x : logits) max = x > max ? x : max;
  return max;
}

// log(sum(exp(logits))).
double LogSumExp(std::span<const float> logits) {
  const float max = MaxLogit(logits);
  if (!std::isfinite(max)) return max;
  double sum = 0.0;
  for (float x : logits) {
    const float e = ExpOrZero(x - max);
    if (e > 0.0f) sum += static_cast<double>(e);
  }
  return static_cast<double>(max) + std::log(sum);
}

float LogProbOf(float logit, double log_sum_exp) {
  return static_cast<float>(static_cast<double>(logit) - log_sum_exp);
}

struct Candidate {
  float value;
  TokenId token;
};

// Better first: larger value, then lower token id. NaN is worst, so that the
// order stays strict whatever the logits are.
bool Better(const Candidate& a, const Candidate& b) {
  const float x = std::isnan(a.value) ? -INFINITY : a.value;
  const float y = std::isnan(b.value) ? -INFINITY : b.value;
  return x != y ? x > y : a.token < b.token;
}

// The `n` best logits, best first: one pass with a heap whose top is the worst
// of those kept.
std::vector<Candidate> Best(std::span<const float> logits, size_t n) {
  std::vector<Candidate> heap;
  n = std::min(n, logits.size());
  if (n == 0) return heap;
  heap.reserve(n + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate c{logits[i], static_cast<TokenId>(i)};
    if (heap.size() == n && !Better(c, heap.front())) continue;
    heap.push_back(c);
    std::push_heap(heap.begin(), heap.end(), Better);
    if (heap.size() > n) {
      std::pop_heap(heap.begin(), heap.end(), Better);
      heap.pop_back();
    }
  }
  std::sort_heap(heap.begin(), heap.end(), Better);
  return heap;
}

TokenId ArgMax(std::span<const float> logits) {
  const float max = MaxLogit(logits);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == max) return static_cast<TokenId>(i);
  }
  return 0;  // every logit is NaN
}

void ApplyPenalties(std::span<const TokenId> history, const SamplingParams& p,
                    std::span<float> logits) {
  const size_t n =
      std::min(history.size(), static_cast<size_t>(p.penalty_last_n));
  std::unordered_map<TokenId, int> counts;
  for (TokenId t : history.last(n)) {
    if (t >= 0 && static_cast<size_t>(t) < logits.size()) ++counts[t];
  }
  for (const auto& [token, count] : counts) {
    float& logit = logits[static_cast<size_t>(token)];
    // Keskar et al., "CTRL", 2019, section 4.1, with llama.cpp's reading for
    // negative logits: a penalty never makes a token likelier.
    logit = logit > 0.0f ? logit / p.repetition_penalty
                         : logit * p.repetition_penalty;
    logit -=
        p.presence_penalty + static_cast<float>(count) * p.frequency_penalty;
  }
}

// Drops candidates beyond top-k and top-p. `z` is logit / temperature less its
// maximum; only those at or above a threshold need sorting, where the mass and
// the number above it show that no other can pass the filters.
std::vector<Candidate> TopKTopP(std::span<const float> z, size_t top_k,
                                double top_p) {
  std::vector<Candidate> kept;
  double total = 0.0;
  if (top_k > 0 && top_k < z.size()) {
    // A heap pays for few; for many, selecting is linear.
    if (top_k <= 256) {
      kept = Best(z, top_k);
    } else {
      kept.resize(z.size());
      for (size_t i = 0; i < z.size(); ++i) {
        kept[i] = {z[i], static_cast<TokenId>(i)};
      }
      const auto end = kept.begin() + static_cast<ptrdiff_t>(top_k);
      std::nth_element(kept.begin(), end, kept.end(), Better);
      kept.resize(top_k);
      std::sort(kept.begin(), kept.end(), Better);
    }
    for (const Candidate& c : kept) {
      total += static_cast<double>(ExpOrZero(c.value));
    }
  } else {
    for (float x : z) total += static_cast<double>(ExpOrZero(x));
    for (float threshold : {-4.0f, -8.0f, -16.0f, kExpUnderflow}) {
      kept.clear();
      double mass = 0.0;
      for (size_t i = 0; i < z.size(); ++i) {
        if (z[i] < threshold) continue;
        kept.push_back({z[i], static_cast<TokenId>(i)});
        mass += static_cast<double>(ExpOrZero(z[i]));
      }
      if (mass >= top_p * total) break;
    }
    std::sort(kept.begin(), kept.end(), Better);
  }
  if (top_p < 1.0) {
    double mass = 0.0;
    size_t n = 0;
    while (n < kept.size() && (n == 0 || mass < top_p * total)) {
      mass += static_cast<double>(ExpOrZero(kept[n].value));
      ++n;
    }
    kept.resize(n);
  }
  std::sort(
      kept.begin(), kept.end(),
      [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  return kept;
}

TokenId Draw(std::span<const float> logits, const SamplingParams& p,
             int64_t position) {
  const float max = MaxLogit(logits);
  if (!std::isfinite(max)) return ArgMax(logits);
  // Less the maximum before the division: a tiny temperature then gives -inf,
  // which is right, and never inf - inf.
  std::vector<float> z(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float x = (logits[i] - max) / p.temperature;
    z[i] = std::isnan(x) ? -INFINITY : x;
  }
  const double u = PhiloxUniform(p.seed, static_cast<uint64_t>(position));
  // exp(z) is a candidate's weight, 1 that of the best.
  const auto weight = [&](float x) {
    const float e = ExpOrZero(x);
    return e >= p.min_p ? static_cast<double>(e) : 0.0;
  };
  const bool filtered =
      (p.top_k > 0 && static_cast<size_t>(p.top_k) < logits.size()) ||
      p.top_p < 1.0f;
  std::vector<Candidate> kept;
  if (filtered) {
    kept =
        TopKTopP(z, static_cast<size_t>(p.top_k), static_cast<double>(p.top_p));
  } else {
    kept.reserve(z.size());
    for (size_t i = 0; i < z.size(); ++i) {
      if (z[i] >= kExpUnderflow) {
        kept.push_back({z[i], static_cast<TokenId>(i)});
      }
    }
  }
  double total = 0.0;
  for (Candidate& c : kept) {
    c.value = static_cast<float>(weight(c.value));
    total += static_cast<double>(c.value);
  }
  const double target = u * total;
  double mass = 0.0;
  TokenId last = 0;
  for (const Candidate& c : kept) {
    if (c.value <= 0.0f) continue;
    mass += static_cast<double>(c.value);
    last = c.token;
    if (mass > target) break;
  }
  return last;
}

bool IsAllowed(std::span<const uint32_t> allowed, size_t token) {
  return token / 32 < allowed.size() &&
         (allowed[token / 32] >> (token % 32) & 1u) != 0;
}

void Forbid(std::span<const uint32_t> allowed, std::span<float> logits) {
  for (size_t begin = 0; begin < logits.size(); begin += 32) {
    const size_t word = begin / 32;
    const uint32_t bits = word < allowed.size() ? allowed[word] : 0;
    if (bits == ~uint32_t{0}) continue;
    const size_t end = std::min(begin + 32, logits.size());
    for (size_t i = begin; i < end; ++i) {
      if ((bits >> (i - begin) & 1u) == 0) logits[i] = -INFINITY;
    }
  }
}

// `low` and `high` inclusive, or `low` not; NaN is out of every range.
struct Range {
  std::string_view name;
  float value = 0.0f;
  float low = 0.0f;
  float high = 0.0f;
  bool low_is_in = true;
};

}  // namespace

bool HasPenalty(const SamplingParams& p) {
  return p.penalty_last_n > 0 &&
         (p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f ||
          p.frequency_penalty != 0.0f);
}

absl::Status ValidateSampling(const SamplingParams& p) {
  for (const Range& r : {
           Range{"temperature", p.temperature, 0.0f, 100.0f},
           Range{"top_p", p.top_p, 0.0f, 1.0f, false},
           Range{"min_p", p.min_p, 0.0f, 1.0f},
           Range{"repetition_penalty", p.repetition_penalty, 0.0f, 100.0f,
                 false},
           Range{"presence_penalty", p.presence_penalty, -100.0f, 100.0f},
           Range{"frequency_penalty", p.frequency_penalty, -100.0f, 100.0f},
       }) {
    const bool above = r.low_is_in ? r.value >= r.low : r.value > r.low;
    if (above && r.value <= r.high) continue;
    return FieldError(
        r.name,
        absl::StrCat("in ", r.low_is_in ? "[" : "(", r.low, ", ", r.high, "]"),
        r.value);
  }
  for (const auto& [name, value] :
       {std::pair("top_k", p.top_k), {"penalty_last_n", p.penalty_last_n}}) {
    if (value >= 0) continue;
    return FieldError(name, "at least 0", value);
  }
  if (p.logit_bias.size() > kMaxLogitBias) {
    return FieldError("logit_bias",
                      absl::StrCat("at most ", kMaxLogitBias, " tokens"),
                      p.logit_bias.size());
  }
  for (const auto& [token, bias] : p.logit_bias) {
    if (bias >= -100.0f && bias <= 100.0f) continue;
    return FieldError(absl::StrCat("logit_bias[", token, "]"), "in [-100, 100]",
                      bias);
  }
  return absl::OkStatus();
}

SampledToken SampleToken(std::span<const float> logits,
                         std::span<const TokenId> history,
                         const SamplingParams& params, int64_t position,
                         int num_top_logprobs,
                         std::span<const uint32_t> allowed) {
  SampledToken result;
  std::vector<float> penalized;
  std::span<const float> used = logits;
  if (HasPenalty(params) || !params.logit_bias.empty() || !allowed.empty()) {
    penalized.assign(logits.begin(), logits.end());
    if (HasPenalty(params)) ApplyPenalties(history, params, penalized);
    for (const auto& [token, bias] : params.logit_bias) {
      const auto i = static_cast<size_t>(token);
      if (token >= 0 && i < penalized.size()) penalized[i] += bias;
    }
    if (!allowed.empty()) Forbid(allowed, penalized);
    used = penalized;
  }
  result.token =
      params.temperature > 0.0f ? Draw(used, params, position) : ArgMax(used);
  if (!allowed.empty() &&
      !IsAllowed(allowed, static_cast<size_t>(result.token))) {
    // Every logit that is allowed is NaN or -inf.
    size_t first = 0;
    while (first + 1 < logits.size() && !IsAllowed(allowed, first)) ++first;
    result.token = static_cast<TokenId>(first);
  }
  const double lse = LogSumExp(logits);
  result.logprob = LogProbOf(logits[static_cast<size_t>(result.token)], lse);
  if (num_top_logprobs > 0) {
    for (const Candidate& c :
         Best(logits, static_cast<size_t>(num_top_logprobs))) {
      result.top.push_back({c.token, LogProbOf(c.value, lse)});
    }
  }
  return result;
}

float LogProb(std::span<const float> logits, TokenId token) {
  return LogProbOf(logits[static_cast<size_t>(token)], LogSumExp(logits));
}

}  // namespace xcache
