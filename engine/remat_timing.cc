#include "engine/remat_timing.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/types.h"
#include "engine/xcache/page.h"

namespace xcache {
namespace {

double SteadySeconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Pages of blocks 0 to kMeasuredBlocks of this text.
absl::StatusOr<std::vector<std::string>> MakePages(
    Engine& engine, const CodecHandle& codec, std::span<const TokenId> tokens) {
  XC_ASSIGN_OR_RETURN(auto sequence, engine.NewSequence(codec, {}, {}));
  for (size_t b = 0; b < 2; ++b) {
    StepItem item;
    item.sequence = sequence.get();
    item.tokens = tokens.subspan(b * kBlockTokens, kBlockTokens);
    XC_RETURN_IF_ERROR(engine.Step({&item, 1}));
  }
  std::vector<std::string> pages;
  for (SealedBlock& sealed : sequence->TakeSealed()) {
    pages.push_back(std::move(sealed.page));
  }
  std::string from = pages[1];
  const std::span<const uint8_t> payload = PagePayload(from);
  for (int64_t b = 2; b <= kMeasuredBlocks; ++b) {
    std::string page = BeginPage(
        codec.cache_fp(), b,
        tokens.subspan(static_cast<size_t>(b) * kBlockTokens, kBlockTokens),
        payload.size());
    std::copy(payload.begin(), payload.end(), PagePayload(page).begin());
    FinishPage(page);
    pages.push_back(std::move(page));
  }
  return pages;
}

// A sequence of `num_blocks` blocks out of those that there are: block 0, then
// the others in turn. Their rows are of other positions than they stand at,
// which takes as long.
absl::StatusOr<std::unique_ptr<Sequence>> MakeSequence(
    Engine& engine, const CodecHandle& codec,
    std::span<const KvBlockRef> blocks, int64_t num_blocks,
    RematPolicy policy) {
  std::vector<KvBlockRef> cached;
  for (int64_t b = 0; b < num_blocks; ++b) {
    cached.push_back(blocks[static_cast<size_t>(
        b == 0 ? 0 : 1 + (b - 1) % kMeasuredBlocks)]);
  }
  const std::vector<TokenId> tokens(
      static_cast<size_t>(num_blocks * kBlockTokens), 0);
  return engine.NewSequence(codec, tokens, cached, policy);
}

}  // namespace

absl::StatusOr<std::vector<StepTime>> MeasureRematSteps(
    Engine& engine, const CodecHandle& codec,
    const RematTimingOptions& options) {
  const std::function<double()> clock =
      options.clock ? options.clock : &SteadySeconds;
  const int64_t context = engine.info().context_length;
  // Room for the live block that the steps write.
  const int64_t most =
      std::min(options.max_tokens, context - kBlockTokens) / kBlockTokens;
  std::vector<int64_t> lengths;  // in blocks; one that has codes at least
  for (int64_t part : {8, 4, 2, 1}) {
    if (most / part > 1) lengths.push_back(most / part);
  }
  if (lengths.size() < 2 || context < (kMeasuredBlocks + 1) * kBlockTokens) {
    return std::vector<StepTime>();
  }

  std::vector<TokenId> tokens(
      static_cast<size_t>((kMeasuredBlocks + 1) * kBlockTokens));
  for (size_t i = 0; i < tokens.size(); ++i) {
    // Any ids, spread over the vocabulary.
    tokens[i] = static_cast<TokenId>(
        i * 2654435761u % static_cast<size_t>(engine.info().vocab_size));
  }
  XC_ASSIGN_OR_RETURN(const std::vector<std::string> pages,
                      MakePages(engine, codec, tokens));
  constexpr RematPolicy kPolicies[] = {RematPolicy::kResume,
                                       RematPolicy::kStep};
  std::vector<KvBlockRef> blocks[2];
  for (size_t p = 0; p < 2; ++p) {
    std::vector<RematJob> jobs(pages.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      jobs[i] = {static_cast<int64_t>(i), pages[i],
                 std::span(tokens).subspan(i * kBlockTokens, kBlockTokens),
                 kPolicies[p]};
    }
    for (auto& block : engine.Remat(codec, jobs)) {
      XC_RETURN_IF_ERROR(block.status());
      blocks[p].push_back(*std::move(block));
    }
  }

  std::vector<StepTime> times;
  for (int64_t num_blocks : lengths) {
    std::unique_ptr<Sequence> sequences[2];
    double fastest[2];
    for (size_t p = 0; p < 2; ++p) {
      XC_ASSIGN_OR_RETURN(sequences[p], MakeSequence(engine, codec, blocks[p],
                                                     num_blocks, kPolicies[p]));
      fastest[p] = std::numeric_limits<double>::infinity();
    }
    // The policies take turns, so that what changes meanwhile (a GPU's clock)
    // is the same for both; the first step of each makes room and is not
    // counted.
    for (int i = 0; i <= options.repeat; ++i) {
      for (size_t p = 0; p < 2; ++p) {
        StepItem item;
        item.sequence = sequences[p].get();
        item.tokens = std::span(tokens).first(1);
        item.logits_mode = LogitsMode::kLast;
        const double begin = i > 0 ? clock() : 0.0;
        XC_RETURN_IF_ERROR(engine.Step({&item, 1}));
        if (i > 0) fastest[p] = std::min(fastest[p], clock() - begin);
      }
    }
    times.push_back({num_blocks * kBlockTokens, fastest[0], fastest[1]});
  }
  return times;
}

}  // namespace xcache
