#include "tests/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// log of the sum of exponentials, and the index of the largest logit.
struct Normalizer {
  double log_sum = 0.0;
  size_t top = 0;
};

Normalizer Normalize(std::span<const float> logits) {
  Normalizer n;
  n.top = static_cast<size_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());
  const double max = logits[n.top];
  double sum = 0.0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) - max);
  n.log_sum = max + std::log(sum);
  return n;
}

absl::Status RunWindow(Engine& engine,
                       const std::vector<const CodecHandle*>& codecs,
                       std::span<const TokenId> window,
                       const std::function<void(size_t)>& progress,
                       std::vector<Evaluation>* evaluations) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (const CodecHandle* codec : codecs) {
    XC_ASSIGN_OR_RETURN(auto sequence, engine.NewSequence(*codec, {}, {}));
    sequences.push_back(std::move(sequence));
  }
  const auto vocab = static_cast<size_t>(engine.info().vocab_size);
  for (size_t begin = 0; begin < window.size(); begin += kBlockTokens) {
    const size_t count = std::min<size_t>(kBlockTokens, window.size() - begin);
    std::vector<StepItem> items(sequences.size());
    for (size_t i = 0; i < items.size(); ++i) {
      items[i].sequence = sequences[i].get();
      items[i].tokens = window.subspan(begin, count);
      items[i].logits_mode = LogitsMode::kAll;
    }
    XC_RETURN_IF_ERROR(engine.Step(items));
    for (size_t i = 1; i < items.size(); ++i) {
      Evaluation& evaluation = (*evaluations)[i - 1];
      for (size_t t = 0; t < count && begin + t + 1 < window.size(); ++t) {
        AddPosition(items[0].logits.subspan(t * vocab, vocab),
                    items[i].logits.subspan(t * vocab, vocab),
                    window[begin + t + 1], &evaluation);
      }
      for (const SealedBlock& sealed : sequences[i]->TakeSealed()) {
        evaluation.page_bytes += static_cast<int64_t>(sealed.page.size());
        evaluation.page_tokens += kBlockTokens;
      }
    }
    sequences[0]->TakeSealed();
    progress(begin + count);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> SplitSpecs(std::string_view list) {
  std::vector<std::string> specs;
  while (!list.empty()) {
    const size_t comma = list.find(',');
    const std::string_view part = list.substr(0, comma);
    const bool option = part.find('=') != std::string_view::npos &&
                        part.find(':') == std::string_view::npos;
    if (option && !specs.empty()) {
      specs.back().append(",").append(part);
    } else {
      specs.emplace_back(part);
    }
    list = comma == std::string_view::npos ? "" : list.substr(comma + 1);
  }
  return specs;
}

void AddPosition(std::span<const float> baseline, std::span<const float> logits,
                 TokenId next, Evaluation* evaluation) {
  const Normalizer p = Normalize(baseline);
  const Normalizer q = Normalize(logits);
  const auto id = static_cast<size_t>(next);
  double kl = 0.0;
  for (size_t i = 0; i < baseline.size(); ++i) {
    const double log_p = baseline[i] - p.log_sum;
    kl += std::exp(log_p) * (log_p - (logits[i] - q.log_sum));
  }
  evaluation->tokens += 1;
  evaluation->sum_nll += q.log_sum - logits[id];
  evaluation->sum_baseline_nll += p.log_sum - baseline[id];
  evaluation->sum_kl += kl;
  evaluation->same_top1 += p.top == q.top ? 1 : 0;
}

absl::StatusOr<std::vector<Evaluation>> Evaluate(
    Engine& engine, const std::vector<std::string>& specs,
    const std::vector<std::vector<TokenId>>& windows,
    const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(const CodecHandle* lossless,
                      engine.OpenCodec("kv-fp16", progress));
  std::vector<const CodecHandle*> codecs = {lossless};
  std::vector<Evaluation> evaluations;
  for (const std::string& spec : specs) {
    XC_ASSIGN_OR_RETURN(const CodecHandle* codec,
                        engine.OpenCodec(spec, progress));
    codecs.push_back(codec);
    Evaluation evaluation;
    evaluation.codec = std::string(codec->spec());
    evaluation.kv_fp16_bytes_per_token = engine.info().kv_fp16_bytes_per_token;
    evaluations.push_back(evaluation);
  }
  size_t done = 0, total = 0;
  for (const auto& window : windows) total += window.size();
  for (const auto& window : windows) {
    XC_RETURN_IF_ERROR(RunWindow(
        engine, codecs, window,
        [&](size_t of_window) {
          if (!progress) return;
          progress("evaluate", static_cast<double>(done + of_window) /
                                   static_cast<double>(total));
        },
        &evaluations));
    done += window.size();
  }
  for (size_t i = 0; i < evaluations.size(); ++i) {
    // Windows of less than a block leave no page; every page is as large.
    if (evaluations[i].page_tokens == 0) {
      evaluations[i].page_tokens = kBlockTokens;
      evaluations[i].page_bytes =
          static_cast<int64_t>(codecs[i + 1]->page_bytes());
    }
  }
  return evaluations;
}

}  // namespace xcache
