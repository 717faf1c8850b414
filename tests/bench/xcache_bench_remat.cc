// How fast pages become K and V again, codec by codec, next to what prefilling
// the same tokens takes and to what the machine can multiply.
#include <algorithm>
#include <ctime>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "tests/bench/xcache_bench.h"

namespace xcache::bench {
namespace {

constexpr int kRuns = 5;

// The multiply-adds of the matrix products that a token's K and V take, all
// layers, by the codec's definition. nullopt: not a codec of this table. d:
// width of X; k: of K and of V.
std::optional<double> MultiplyAddsPerToken(std::string_view spec,
                                           const ModelInfo& model) {
  const std::string_view name = spec.substr(0, spec.find(':'));
  const double d = model.d_model, k = model.n_kv_heads * model.head_dim;
  const double layers = model.num_layers;
  if (name == "kv-fp16" || name == "kivi") return 0.0;  // only unpacked
  // X times W_k and W_v.
  if (name == "xquant" || name == "xquant-cl") return layers * d * 2 * k;
  // K's latent times its basis; V is turned back by additions.
  if (name == "xquant-gqa") return layers * k * k;
  // The latent of 2 k back to X, then X times W_k and W_v.
  if (name == "xquant-cl-gqa") return layers * (2 * k * d + d * 2 * k);
  return std::nullopt;
}

}  // namespace

absl::Status BenchRemat(Engine& engine, const CodecHandle& codec,
                        const Prompts& prompts, int tokens, int threads,
                        const MachineLimits& limits, Report& report) {
  const size_t blocks = static_cast<size_t>(InFullWindows(codec, tokens)) /
                        static_cast<size_t>(kBlockTokens);
  if (blocks == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--remat-tokens: expected at least ", codec.exact_window(),
                     " tokens, found ", tokens));
  }
  const std::vector<TokenId> ids =
      prompts.Take(static_cast<int>(blocks) * kBlockTokens);
  XC_ASSIGN_OR_RETURN(auto sequence, engine.NewSequence(codec, {}, {}));
  const Timer prefill_timer;
  XC_RETURN_IF_ERROR(Prefill(engine, *sequence, ids).status());
  const double prefill_ms = prefill_timer.ms();
  const std::vector<SealedBlock> sealed = sequence->TakeSealed();
  sequence.reset();

  std::vector<RematJob> jobs(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    jobs[i] = {static_cast<int64_t>(i), sealed[i].page,
               std::span(ids).subspan(i * kBlockTokens, kBlockTokens)};
  }
  std::vector<double> runs_ms;
  // What all threads took together: of use where others compute as well.
  double cpu_ms_min = std::numeric_limits<double>::infinity();
  for (int run = 0; run <= kRuns; ++run) {
    const std::clock_t cpu = std::clock();
    const Timer timer;
    for (const auto& block : engine.Remat(codec, jobs)) {
      XC_RETURN_IF_ERROR(block.status());
    }
    if (run == 0) continue;  // it warms up
    runs_ms.push_back(timer.ms());
    cpu_ms_min =
        std::min(cpu_ms_min, 1e3 * static_cast<double>(std::clock() - cpu) /
                                 CLOCKS_PER_SEC);
  }
  std::sort(runs_ms.begin(), runs_ms.end());
  const double ms = runs_ms[runs_ms.size() / 2];
  const auto count = static_cast<double>(ids.size());
  const double per_second = count / ms * 1e3;
  const double prefill_per_second = count / prefill_ms * 1e3;
  nlohmann::ordered_json row = {
      {"engine", "xcache"},
      {"what", "remat"},
      {"codec", codec.spec()},
      {"threads", threads},
      {"tokens", ids.size()},
      {"ms", ms},
      {"ms_min", runs_ms.front()},
      {"ms_max", runs_ms.back()},
      {"cpu_ms_min", cpu_ms_min},
      {"tokens_per_s", per_second},
      {"prefill_tokens_per_s", prefill_per_second},
      {"times_prefill", per_second / prefill_per_second},
      {"page_bytes_per_token",
       static_cast<double>(codec.page_bytes()) / kBlockTokens}};
  // The rest of the time goes to unpacking, RoPE and FP16.
  if (const auto madds = MultiplyAddsPerToken(codec.spec(), engine.info())) {
    const double giga = *madds * per_second * 1e-9;
    row["multiply_adds_per_token"] = *madds;
    row["giga_multiply_adds_per_s"] = giga;
    if (limits.fp32 > 0.0) {
      row["limit_fp32"] = limits.fp32;
      row["of_limit_fp32"] = giga / limits.fp32;
      row["limit_int8"] = limits.int8;
      row["of_limit_int8"] = giga / limits.int8;
    }
  }
  report.Add(row);
  return absl::OkStatus();
}

}  // namespace xcache::bench
