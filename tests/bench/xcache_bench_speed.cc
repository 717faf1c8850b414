// Prefill and decode rates, and how results are printed.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "engine/base/status_macros.h"
#include "tests/bench/xcache_bench.h"

namespace xcache::bench {

void Report::Add(const nlohmann::ordered_json& row) {
  if (json_) {
    std::printf("%s\n", row.dump().c_str());
    std::fflush(stdout);
    return;
  }
  std::string columns, line;
  for (const auto& [name, value] : row.items()) {
    if (name == "engine") continue;
    std::string text =
        value.is_string() ? value.get<std::string>() : value.dump();
    if (value.is_number_float()) {
      char buffer[32];
      std::snprintf(buffer, sizeof(buffer), "%.2f", value.get<double>());
      text = buffer;
    }
    const size_t width = std::max(name.size(), text.size()) + 2;
    columns += name + std::string(width - name.size(), ' ');
    line += text + std::string(width - text.size(), ' ');
  }
  // Widths follow the row's values, so a row that needs others gets a new head.
  if (columns != columns_) std::printf("%s\n", columns.c_str());
  columns_ = columns;
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

std::vector<TokenId> Prompts::Take(int n) const {
  std::vector<TokenId> tokens(static_cast<size_t>(n));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = text_.empty()
                    ? static_cast<TokenId>((i * 7919 + 13) %
                                           static_cast<size_t>(vocab_size_))
                    : text_[i % text_.size()];
  }
  return tokens;
}

absl::StatusOr<std::span<const float>> Prefill(
    Engine& engine, Sequence& sequence, std::span<const TokenId> tokens) {
  std::span<const float> logits;
  while (!tokens.empty()) {
    StepItem item;
    item.sequence = &sequence;
    const size_t room = kBlockTokens - sequence.tokens().size() % kBlockTokens;
    item.tokens = tokens.first(std::min(room, tokens.size()));
    tokens = tokens.subspan(item.tokens.size());
    if (tokens.empty()) item.logits_mode = LogitsMode::kLast;
    XC_RETURN_IF_ERROR(engine.Step({&item, 1}));
    logits = item.logits;
  }
  return logits;
}

absl::Status BenchPrefill(Engine& engine, const CodecHandle& codec,
                          const Prompts& prompts, int tokens, int threads,
                          Report& report) {
  const std::vector<TokenId> ids = prompts.Take(tokens);
  XC_ASSIGN_OR_RETURN(auto sequence, engine.NewSequence(codec, {}, {}));
  const Timer timer;
  XC_RETURN_IF_ERROR(Prefill(engine, *sequence, ids).status());
  const double ms = timer.ms();
  report.Add({{"engine", "xcache"},
              {"what", "prefill"},
              {"codec", codec.spec()},
              {"threads", threads},
              {"tokens", tokens},
              {"ms", ms},
              {"tokens_per_s", tokens / ms * 1e3}});
  return absl::OkStatus();
}

absl::Status BenchDecode(Engine& engine, const CodecHandle& codec,
                         const Prompts& prompts, int depth, int tokens,
                         int batch, int rows, int threads, Report& report) {
  const std::vector<TokenId> prompt = prompts.Take(depth);
  const std::vector<TokenId> ids = prompts.Take(tokens + rows);
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int i = 0; i < batch; ++i) {
    XC_ASSIGN_OR_RETURN(auto sequence, engine.NewSequence(codec, {}, {}));
    XC_RETURN_IF_ERROR(Prefill(engine, *sequence, prompt).status());
    sequences.push_back(std::move(sequence));
  }
  std::vector<double> step_ms;
  for (size_t t = 0; t <= static_cast<size_t>(tokens); ++t) {
    std::vector<StepItem> items(sequences.size());
    for (size_t i = 0; i < items.size(); ++i) {
      Sequence& sequence = *sequences[i];
      items[i].sequence = &sequence;
      // A draft ends before its block does.
      const size_t left =
          kBlockTokens - sequence.tokens().size() % kBlockTokens;
      items[i].tokens = std::span(ids).subspan(
          t, std::clamp(left - 1, size_t{1}, static_cast<size_t>(rows)));
      items[i].logits_mode = LogitsMode::kAll;
    }
    const Timer timer;
    XC_RETURN_IF_ERROR(engine.Step(items));
    if (t > 0) step_ms.push_back(timer.ms());  // the first one warms up
    for (const StepItem& item : items) {
      item.sequence->TakeSealed();
      item.sequence->Truncate(static_cast<int64_t>(
          item.sequence->tokens().size() - item.tokens.size() + 1));
    }
  }
  double total = 0.0;
  for (double ms : step_ms) total += ms;
  std::sort(step_ms.begin(), step_ms.end());
  report.Add({{"engine", "xcache"},
              {"what", "decode"},
              {"codec", codec.spec()},
              {"threads", threads},
              {"depth", depth},
              {"batch", batch},
              {"rows", rows},
              {"tokens", tokens},
              {"ms_per_step_min", step_ms.front()},
              {"ms_per_step_median", step_ms[step_ms.size() / 2]},
              {"ms_per_step_max", step_ms.back()},
              {"tokens_per_s", tokens * batch / total * 1e3}});
  return absl::OkStatus();
}

}  // namespace xcache::bench
