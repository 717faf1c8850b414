#include "tests/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/thread_pool.h"

namespace xcache {
namespace {

// Codecs that step together: more rows for a matrix product, more logits held.
constexpr size_t kStepCodecs = 4;

// One codec's way through a window.
struct Track {
  const CodecHandle* codec = nullptr;
  std::unique_ptr<Sequence> sequence;
  std::vector<std::string> pages;  // kept where they are needed again
};

// Takes the working set away and makes it anew, as a server does with a
// conversation that comes back.
absl::Status Resume(Engine& engine, Track* track) {
  const std::span<const TokenId> live = track->sequence->tokens();
  const std::vector<TokenId> tokens(live.begin(), live.end());
  track->sequence.reset();
  std::vector<RematJob> jobs(track->pages.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i] = {static_cast<int64_t>(i), track->pages[i],
               std::span(tokens).subspan(i * kBlockTokens, kBlockTokens)};
  }
  std::vector<KvBlockRef> blocks;
  for (auto& block : engine.Remat(*track->codec, jobs)) {
    XC_RETURN_IF_ERROR(block.status());
    blocks.push_back(*std::move(block));
  }
  const size_t known = blocks.size() * kBlockTokens;
  XC_ASSIGN_OR_RETURN(
      track->sequence,
      engine.NewSequence(*track->codec, std::span(tokens).first(known),
                         blocks));
  for (size_t at = known; at < tokens.size(); at += kBlockTokens) {
    StepItem tail;
    tail.sequence = track->sequence.get();
    tail.tokens = std::span(tokens).subspan(
        at, std::min<size_t>(kBlockTokens, tokens.size() - at));
    XC_RETURN_IF_ERROR(engine.Step({&tail, 1}));
  }
  return absl::OkStatus();
}

// Where turns end: in the midst of a block, so that there is a tail, but for
// the last one.
std::vector<size_t> TurnEnds(size_t window, int turns) {
  std::vector<size_t> ends;
  const auto count = static_cast<size_t>(turns);
  for (size_t i = 1; i < count; ++i) {
    size_t end = window * i / count;
    if (end % kBlockTokens == 0 && end > 0) end -= 13;
    if (end > (ends.empty() ? 0 : ends.back())) ends.push_back(end);
  }
  ends.push_back(window);
  return ends;
}

// One window, the reference and some codecs side by side.
class WindowRun {
 public:
  // `tracks`: the reference first. `evaluations`: one for each other.
  // `answers`: what counts of the window; null: all of it.
  WindowRun(Engine& engine, ThreadPool& pool, std::span<const TokenId> window,
            const std::vector<Answer>* answers, std::vector<Track> tracks,
            std::span<Evaluation> evaluations)
      : engine_(engine),
        pool_(pool),
        window_(window),
        tracks_(std::move(tracks)),
        evaluations_(evaluations),
        vocab_(static_cast<size_t>(engine.info().vocab_size)),
        counts_(window.size(), answers == nullptr),
        hits_(evaluations.size(), std::vector<bool>(window.size())) {
    counts_[0] = false;
    if (answers == nullptr) return;
    answers_ = *answers;
    for (const Answer& answer : answers_) {
      std::fill(counts_.begin() + static_cast<ptrdiff_t>(answer.begin),
                counts_.begin() + static_cast<ptrdiff_t>(answer.end), true);
    }
  }

  absl::Status Run(int turns, const std::function<void(size_t)>& progress) {
    keep_pages_ = turns > 1;
    for (Track& track : tracks_) {
      XC_ASSIGN_OR_RETURN(track.sequence,
                          engine_.NewSequence(*track.codec, {}, {}));
    }
    size_t begin = 0;
    for (size_t end : TurnEnds(window_.size(), turns)) {
      while (begin < end) {
        const size_t count =
            std::min(kBlockTokens - begin % kBlockTokens, end - begin);
        XC_RETURN_IF_ERROR(Advance(begin, count));
        begin += count;
        progress(begin);
      }
      if (end == window_.size()) break;
      for (Track& track : tracks_) {
        XC_RETURN_IF_ERROR(Resume(engine_, &track));
      }
    }
    for (size_t c = 0; c < hits_.size(); ++c) {
      for (const Answer& answer : answers_) {
        size_t at = answer.begin;
        while (at < answer.end && hits_[c][at]) ++at;
        evaluations_[c].answers += 1;
        evaluations_[c].whole_answers += at == answer.end ? 1 : 0;
        evaluations_[c].sum_prefix_share +=
            static_cast<double>(at - answer.begin) /
            static_cast<double>(answer.end - answer.begin);
      }
    }
    return absl::OkStatus();
  }

 private:
  // Forwards tokens [begin, begin + count), which lie in one block.
  absl::Status Advance(size_t begin, size_t count) {
    StepItem item = Item(&tracks_[0], begin, count);
    XC_RETURN_IF_ERROR(engine_.Step({&item, 1}));
    TakePages(&tracks_[0], nullptr);
    // Rows whose next token counts.
    std::vector<size_t> rows;
    for (size_t t = 0; t < count; ++t) {
      if (begin + t + 1 < window_.size() && counts_[begin + t + 1]) {
        rows.push_back(t);
      }
    }
    const size_t scored = rows.size();
    std::vector<std::unique_ptr<ReferencePosition>> reference(scored);
    pool_.ParallelFor(static_cast<int64_t>(scored), [&](int64_t i, int) {
      const auto t = static_cast<size_t>(i);
      reference[t] = std::make_unique<ReferencePosition>(
          item.logits.subspan(rows[t] * vocab_, vocab_));
    });
    for (size_t first = 1; first < tracks_.size(); first += kStepCodecs) {
      const size_t size = std::min(kStepCodecs, tracks_.size() - first);
      std::vector<StepItem> items;
      for (size_t i = 0; i < size; ++i) {
        items.push_back(Item(&tracks_[first + i], begin, count));
      }
      XC_RETURN_IF_ERROR(engine_.Step(items));
      // Computed in parallel, added in order: sums do not depend on threads,
      // nor on how a window is cut into steps.
      std::vector<Evaluation> positions(size * scored);
      pool_.ParallelFor(
          static_cast<int64_t>(positions.size()), [&](int64_t i, int) {
            const size_t at = static_cast<size_t>(i), t = at % scored;
            reference[t]->Add(
                items[at / scored].logits.subspan(rows[t] * vocab_, vocab_),
                window_[begin + rows[t] + 1], &positions[at]);
          });
      for (size_t at = 0; at < positions.size(); ++at) {
        Evaluation& sum = evaluations_[first - 1 + at / scored];
        sum.tokens += positions[at].tokens;
        sum.sum_nll += positions[at].sum_nll;
        sum.sum_baseline_nll += positions[at].sum_baseline_nll;
        sum.sum_kl += positions[at].sum_kl;
        sum.same_top1 += positions[at].same_top1;
        sum.hits += positions[at].hits;
        hits_[first - 1 + at / scored][begin + rows[at % scored] + 1] =
            positions[at].hits > 0;
      }
      for (size_t i = 0; i < size; ++i) {
        TakePages(&tracks_[first + i], &evaluations_[first - 1 + i]);
      }
    }
    return absl::OkStatus();
  }

  StepItem Item(Track* track, size_t begin, size_t count) const {
    StepItem item;
    item.sequence = track->sequence.get();
    item.tokens = window_.subspan(begin, count);
    const auto counted = counts_.begin() + static_cast<ptrdiff_t>(begin + 1);
    const auto next =
        static_cast<ptrdiff_t>(std::min(count, window_.size() - begin - 1));
    if (std::find(counted, counted + next, true) != counted + next) {
      item.logits_mode = LogitsMode::kAll;
    }
    return item;
  }

  void TakePages(Track* track, Evaluation* evaluation) const {
    for (SealedBlock& sealed : track->sequence->TakeSealed()) {
      if (evaluation != nullptr) {
        evaluation->page_bytes += static_cast<int64_t>(sealed.page.size());
        evaluation->page_tokens += kBlockTokens;
      }
      if (keep_pages_) track->pages.push_back(std::move(sealed.page));
    }
  }

  Engine& engine_;
  ThreadPool& pool_;
  const std::span<const TokenId> window_;
  std::vector<Track> tracks_;
  const std::span<Evaluation> evaluations_;
  const size_t vocab_;
  std::vector<Answer> answers_;
  std::vector<bool> counts_;             // of each token of the window
  std::vector<std::vector<bool>> hits_;  // of each evaluation, the same
  bool keep_pages_ = false;
};

// How many of `codecs` fit beside the reference for a window of that size.
size_t CodecsAtOnce(const Engine& engine, const CodecHandle& reference,
                    std::span<const CodecHandle* const> codecs, size_t window,
                    const EvaluateOptions& options) {
  const size_t blocks = (window + kBlockTokens - 1) / kBlockTokens;
  const auto bytes = [&](const CodecHandle& codec) {
    const size_t pages = options.turns > 1 ? codec.page_bytes() : 0;
    return static_cast<int64_t>(blocks * (engine.kv_block_bytes() + pages) +
                                engine.sequence_bytes(codec));
  };
  int64_t left = options.memory_bytes - bytes(reference);
  size_t count = 0;
  while (count < codecs.size() && (left -= bytes(*codecs[count])) >= 0) ++count;
  return std::max<size_t>(count, 1);
}

}  // namespace

std::vector<std::string> SplitSpecs(std::string_view list) {
  std::vector<std::string> specs;
  bool joins = false;  // whether an option may belong to the spec before it
  while (!list.empty()) {
    const size_t end = list.find_first_of(",;");
    const std::string_view part = list.substr(0, end);
    const bool option = part.find('=') != std::string_view::npos &&
                        part.find(':') == std::string_view::npos;
    if (option && joins) {
      specs.back().append(",").append(part);
    } else {
      specs.emplace_back(part);
    }
    if (end == std::string_view::npos) break;
    joins = list[end] == ',';
    list.remove_prefix(end + 1);
  }
  return specs;
}

ReferencePosition::ReferencePosition(std::span<const float> logits)
    : logits_(logits.begin(), logits.end()), p_(logits.size()) {
  top_ =
      static_cast<size_t>(std::ranges::max_element(logits_) - logits_.begin());
  const double max = logits_[top_];
  double sum = 0.0;
  for (size_t i = 0; i < p_.size(); ++i) {
    p_[i] = std::exp(static_cast<double>(logits_[i]) - max);
    sum += p_[i];
  }
  for (double& p : p_) p /= sum;
  log_sum_ = max + std::log(sum);
}

void ReferencePosition::Add(std::span<const float> logits, TokenId next,
                            Evaluation* evaluation) const {
  const auto top =
      static_cast<size_t>(std::ranges::max_element(logits) - logits.begin());
  const double max = logits[top];
  // KL(p || q) = E_p[log p - log q]; both logs are a logit less a constant.
  double sum = 0.0, difference = 0.0;
  for (size_t i = 0; i < p_.size(); ++i) {
    const double x = logits[i];
    sum += std::exp(x - max);
    difference += p_[i] * (static_cast<double>(logits_[i]) - x);
  }
  const double log_sum = max + std::log(sum);
  const auto id = static_cast<size_t>(next);
  evaluation->tokens += 1;
  evaluation->sum_nll += log_sum - logits[id];
  evaluation->sum_baseline_nll += log_sum_ - logits_[id];
  evaluation->sum_kl += difference + (log_sum - log_sum_);
  evaluation->same_top1 += top == top_ ? 1 : 0;
  evaluation->hits += top == id ? 1 : 0;
}

absl::StatusOr<std::vector<Evaluation>> Evaluate(
    Engine& engine, const std::vector<std::string>& specs,
    const std::vector<std::vector<TokenId>>& windows,
    const EvaluateOptions& options) {
  if (options.turns < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "turns of a window: expected at least 1, found ", options.turns));
  }
  if (!options.answers.empty() && options.answers.size() != windows.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("answers: expected those of ", windows.size(),
                     " windows, found ", options.answers.size()));
  }
  XC_ASSIGN_OR_RETURN(const CodecHandle* lossless,
                      engine.OpenCodec("kv-fp16", options.progress));
  std::vector<const CodecHandle*> codecs;
  std::vector<Evaluation> evaluations;
  for (const std::string& spec : specs) {
    XC_ASSIGN_OR_RETURN(const CodecHandle* codec,
                        engine.OpenCodec(spec, options.progress));
    codecs.push_back(codec);
    Evaluation evaluation;
    evaluation.codec = std::string(codec->spec());
    evaluation.kv_fp16_bytes_per_token = engine.info().kv_fp16_bytes_per_token;
    evaluations.push_back(evaluation);
  }
  ThreadPool pool(std::max(options.threads, 1));
  // In tokens through a codec, the reference's not counted.
  size_t done = 0, total = 0;
  for (const auto& window : windows) total += window.size() * codecs.size();
  for (size_t w = 0; w < windows.size(); ++w) {
    const std::vector<TokenId>& window = windows[w];
    for (size_t first = 0; first < codecs.size();) {
      const size_t count =
          CodecsAtOnce(engine, *lossless, std::span(codecs).subspan(first),
                       window.size(), options);
      std::vector<Track> tracks(count + 1);
      tracks[0].codec = lossless;
      for (size_t i = 0; i < count; ++i)
        tracks[i + 1].codec = codecs[first + i];
      WindowRun run(engine, pool, window,
                    options.answers.empty() ? nullptr : &options.answers[w],
                    std::move(tracks),
                    std::span(evaluations).subspan(first, count));
      XC_RETURN_IF_ERROR(run.Run(options.turns, [&](size_t of_window) {
        if (!options.progress) return;
        options.progress("evaluate",
                         static_cast<double>(done + of_window * count) /
                             static_cast<double>(total));
      }));
      done += window.size() * count;
      first += count;
    }
  }
  for (size_t i = 0; i < evaluations.size(); ++i) {
    // Windows of less than a block leave no page; every page is as large.
    if (evaluations[i].page_tokens == 0) {
      evaluations[i].page_tokens = kBlockTokens;
      evaluations[i].page_bytes = static_cast<int64_t>(codecs[i]->page_bytes());
    }
  }
  return evaluations;
}

}  // namespace xcache
