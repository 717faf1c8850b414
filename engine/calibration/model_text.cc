#include "engine/calibration/model_text.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>

#include "engine/base/status_macros.h"
#include "engine/philox.h"

namespace xcache {
namespace {

TokenId Sample(std::span<const float> logits, double share) {
  const double most =
      static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0.0;
  for (float v : logits) sum += std::exp(static_cast<double>(v) - most);
  double left = share * sum;
  for (size_t i = 0; i < logits.size(); ++i) {
    left -= std::exp(static_cast<double>(logits[i]) - most);
    if (left < 0.0) return static_cast<TokenId>(i);
  }
  return static_cast<TokenId>(logits.size() - 1);
}

}  // namespace

absl::StatusOr<std::vector<std::vector<TokenId>>> WriteWindows(
    Engine& engine, size_t count, size_t num_tokens, TokenId first,
    uint64_t seed, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(const CodecHandle* codec,
                      engine.OpenCodec("kv-fp16", progress));
  const auto vocab = static_cast<size_t>(engine.info().vocab_size);
  std::vector<std::vector<TokenId>> windows(count);
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (size_t i = 0; i < count; ++i) {
    XC_ASSIGN_OR_RETURN(sequences.emplace_back(),
                        engine.NewSequence(*codec, {}, {}));
    const double share = PhiloxUniform(seed, i << 32);
    windows[i].push_back(
        i % 2 == 0 ? first
                   : static_cast<TokenId>(share * static_cast<double>(vocab)));
  }
  for (size_t n = 1; n < num_tokens && count > 0; ++n) {
    if (progress) {
      progress("writing text",
               static_cast<double>(n) / static_cast<double>(num_tokens));
    }
    std::vector<StepItem> items(count);
    for (size_t i = 0; i < count; ++i) {
      items[i].sequence = sequences[i].get();
      items[i].tokens = std::span(windows[i]).last(1);
      items[i].logits_mode = LogitsMode::kLast;
    }
    XC_RETURN_IF_ERROR(engine.Step(items));
    for (size_t i = 0; i < count; ++i) {
      windows[i].push_back(
          Sample(items[i].logits, PhiloxUniform(seed, i << 32 | n)));
      sequences[i]->TakeSealed();
    }
  }
  return windows;
}

}  // namespace xcache
