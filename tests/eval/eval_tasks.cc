#include "tests/eval/eval_tasks.h"

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/philox.h"
#include "nlohmann/json.hpp"

namespace xcache {
namespace {

// Sequences that write side by side: rows of a product.
constexpr size_t kWriters = 16;

constexpr std::array<const char*, 8> kTowns = {
    "Lisbon", "Cairo", "Oslo", "Lima", "Kyoto", "Dublin", "Quito", "Athens"};
static_assert(kTowns.size() >= kFacts);

TokenId Likeliest(std::span<const float> logits) {
  return static_cast<TokenId>(std::ranges::max_element(logits) -
                              logits.begin());
}

// Appends what kv-fp16 writes to each of `windows`.
absl::Status Write(Engine& engine, const CodecHandle& codec, size_t num_tokens,
                   std::span<std::vector<TokenId>> windows) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<StepItem> items(windows.size());
  for (std::vector<TokenId>& window : windows) {
    XC_ASSIGN_OR_RETURN(sequences.emplace_back(),
                        engine.NewSequence(codec, {}, {}));
    StepItem& item = items[sequences.size() - 1];
    item.sequence = sequences.back().get();
    // But for the last token, which all of them step with.
    for (size_t at = 0; at + 1 < window.size(); at += kBlockTokens) {
      item.tokens = std::span(window).subspan(
          at, std::min<size_t>(kBlockTokens, window.size() - 1 - at));
      XC_RETURN_IF_ERROR(engine.Step({&item, 1}));
      item.sequence->TakeSealed();
    }
    item.logits_mode = LogitsMode::kLast;
  }
  for (size_t n = 0; n < num_tokens; ++n) {
    for (size_t i = 0; i < windows.size(); ++i) {
      items[i].tokens = std::span(windows[i]).last(1);
    }
    XC_RETURN_IF_ERROR(engine.Step(items));
    for (size_t i = 0; i < windows.size(); ++i) {
      windows[i].push_back(Likeliest(items[i].logits));
      sequences[i]->TakeSealed();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<EvalTask> ContinueGreedily(
    Engine& engine, std::vector<std::vector<TokenId>> prompts,
    size_t num_tokens, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(const CodecHandle* codec,
                      engine.OpenCodec("kv-fp16", progress));
  EvalTask task;
  task.windows = std::move(prompts);
  for (const auto& prompt : task.windows) {
    task.answers.push_back({{prompt.size(), prompt.size() + num_tokens}});
  }
  for (size_t first = 0; first < task.windows.size(); first += kWriters) {
    if (progress) {
      progress("write", static_cast<double>(first) /
                            static_cast<double>(task.windows.size()));
    }
    XC_RETURN_IF_ERROR(Write(
        engine, *codec, num_tokens,
        std::span(task.windows)
            .subspan(first, std::min(kWriters, task.windows.size() - first))));
  }
  return task;
}

absl::StatusOr<EvalTask> AskForFacts(
    const Tokenizer& tokenizer, const std::vector<std::vector<TokenId>>& text,
    uint64_t seed) {
  EvalTask task;
  for (size_t w = 0; w < text.size(); ++w) {
    uint64_t draws = w << 32;
    // The towns, shuffled, so that the first kFacts of them are of this window.
    std::array<const char*, kTowns.size()> towns = kTowns;
    for (size_t i = 0; i < kFacts; ++i) {
      const double share = PhiloxUniform(seed, draws++);
      std::swap(towns[i],
                towns[i + static_cast<size_t>(
                              share * static_cast<double>(towns.size() - i))]);
    }
    // What is asked and what is answered, tokens of their own, so that both
    // places have the same.
    std::array<std::vector<TokenId>, kFacts> questions, answers;
    size_t told = 0;
    for (size_t i = 0; i < kFacts; ++i) {
      XC_ASSIGN_OR_RETURN(questions[i],
                          tokenizer.Encode(absl::StrCat(
                              "\n\nThe secret number of ", towns[i], " is")));
      const int number =
          10000 + static_cast<int>(90000 * PhiloxUniform(seed, draws++));
      XC_ASSIGN_OR_RETURN(answers[i],
                          tokenizer.Encode(absl::StrCat(" ", number, ".")));
      told += questions[i].size() + answers[i].size();
    }
    XC_ASSIGN_OR_RETURN(const std::vector<TokenId> apart,
                        tokenizer.Encode("\n\n"));
    const size_t size = text[w].size();
    const size_t around = 2 * told + kFacts * apart.size();
    if (size < 2 * around) {
      return absl::InvalidArgumentError(absl::StrCat(
          "window: expected at least ", 2 * around, " tokens, found ", size));
    }
    const size_t filler = size - around;
    std::vector<TokenId>& window = task.windows.emplace_back();
    const auto append = [&](const std::vector<TokenId>& part) {
      window.insert(window.end(), part.begin(), part.end());
    };
    size_t taken = 0;
    const auto fill = [&](size_t to) {
      window.insert(window.end(),
                    text[w].begin() + static_cast<ptrdiff_t>(taken),
                    text[w].begin() + static_cast<ptrdiff_t>(to));
      taken = to;
    };
    for (size_t i = 0; i < kFacts; ++i) {
      fill(static_cast<size_t>(static_cast<double>(filler) * kFactsEnd *
                               static_cast<double>(i + 1) /
                               static_cast<double>(kFacts)));
      append(questions[i]);
      append(answers[i]);
      append(apart);
    }
    fill(filler);
    std::vector<Answer>& asked = task.answers.emplace_back();
    for (size_t i = 0; i < kFacts; ++i) {
      const size_t fact = (i + 1 + w % (kFacts - 1)) % kFacts;
      append(questions[fact]);
      asked.push_back({window.size(), window.size() + answers[fact].size()});
      append(answers[fact]);
    }
  }
  return task;
}

std::string TaskJsonLines(std::string_view text, const EvalTask& task) {
  std::string out;
  for (size_t w = 0; w < task.windows.size(); ++w) {
    nlohmann::ordered_json line;
    line["text"] = text;
    line["tokens"] = task.windows[w];
    line["answers"] = nlohmann::json::array();
    if (w < task.answers.size()) {
      for (const Answer& answer : task.answers[w]) {
        line["answers"].push_back({answer.begin, answer.end});
      }
    }
    out += line.dump() + "\n";
  }
  return out;
}

}  // namespace xcache
