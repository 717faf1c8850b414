#include "tests/unit/engine/engine_property.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include "engine/xcache/page.h"
#include "gtest/gtest.h"

namespace xcache::testing {

void ExpectSameLogits(std::span<const float> actual,
                      std::span<const float> expected, float tolerance,
                      const std::string& where) {
  ASSERT_EQ(actual.size(), expected.size()) << where;
  if (tolerance == 0.0f) {
    if (std::memcmp(actual.data(), expected.data(), actual.size_bytes()) == 0) {
      return;
    }
    const auto differ =
        std::mismatch(actual.begin(), actual.end(), expected.begin());
    ADD_FAILURE() << where << ": logits differ in their bits, first at token "
                  << differ.first - actual.begin();
    return;
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], tolerance) << where << ", token " << i;
  }
}

std::vector<TokenId> RandomTokens(int n, int vocab_size, uint32_t seed) {
  std::mt19937 gen(seed);
  std::vector<TokenId> tokens(static_cast<size_t>(n));
  for (TokenId& t : tokens) {
    t = static_cast<TokenId>(gen() % static_cast<uint32_t>(vocab_size));
  }
  return tokens;
}

Reference ComputeReference(Engine& engine, const CodecHandle& codec,
                           std::vector<TokenId> tokens, RematPolicy remat) {
  Reference reference;
  reference.tokens = std::move(tokens);
  auto sequence = engine.NewSequence(codec, {}, {}, remat);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  if (!sequence.ok()) return reference;
  const auto vocab = static_cast<size_t>(engine.info().vocab_size);
  const std::span<const TokenId> all(reference.tokens);
  for (size_t at = 0; at < all.size(); at += kBlockTokens) {
    StepItem item;
    item.sequence = sequence->get();
    item.tokens =
        all.subspan(at, std::min<size_t>(kBlockTokens, all.size() - at));
    item.logits_mode = LogitsMode::kAll;
    const absl::Status status = engine.Step({&item, 1});
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return reference;
    for (size_t i = 0; i < item.tokens.size(); ++i) {
      const auto row = item.logits.subspan(i * vocab, vocab);
      reference.logits.emplace_back(row.begin(), row.end());
    }
  }
  for (SealedBlock& sealed : (*sequence)->TakeSealed()) {
    EXPECT_EQ(sealed.block_index, static_cast<int64_t>(reference.pages.size()));
    const auto view = ParsePage(sealed.page);
    EXPECT_TRUE(view.ok()) << view.status();
    if (view.ok() && view->version == kPageFormatVersion) {
      EXPECT_EQ(sealed.page.size(), codec.page_bytes());
    }
    reference.pages.push_back(std::move(sealed.page));
  }
  EXPECT_EQ(reference.pages.size(), all.size() / kBlockTokens);
  return reference;
}

namespace {

// One sequence of the random run, and the text that it follows.
struct Live {
  std::unique_ptr<Sequence> sequence;
  size_t text = 0;
};

class RandomRun {
 public:
  RandomRun(Engine& engine, const CodecHandle& codec,
            std::span<const Reference> texts, uint32_t seed, float tolerance)
      : engine_(engine),
        codec_(codec),
        texts_(texts),
        gen_(seed),
        tolerance_(tolerance) {}

  void Action() {
    const uint32_t dice = Below(100);
    if (live_.empty() || (dice < 8 && live_.size() < 5)) {
      Start(Below(texts_.size()), {});
    } else if (dice < 16 && live_.size() < 5) {
      Fork();
    } else if (dice < 26 && live_.size() < 5) {
      Resume();
    } else if (dice < 36) {
      Truncate();
    } else if (dice < 42) {
      live_.erase(live_.begin() + static_cast<ptrdiff_t>(Below(live_.size())));
    } else {
      Step();
    }
  }

 private:
  uint32_t Below(size_t n) { return static_cast<uint32_t>(gen_() % n); }
  RematPolicy AnyPolicy() {
    return Below(2) == 0 ? RematPolicy::kResume : RematPolicy::kStep;
  }

  void Start(size_t text, std::span<const KvBlockRef> blocks) {
    const std::span<const TokenId> tokens(texts_[text].tokens);
    auto sequence =
        engine_.NewSequence(codec_, tokens.first(blocks.size() * kBlockTokens),
                            blocks, AnyPolicy());
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    EXPECT_EQ((*sequence)->tokens().size(), blocks.size() * kBlockTokens);
    EXPECT_EQ((*sequence)->blocks().size(), blocks.size());
    live_.push_back({*std::move(sequence), text});
  }

  // A new sequence over some blocks of another, maybe of another text that
  // begins alike.
  void Fork() {
    const Live& from = live_[Below(live_.size())];
    const std::vector<KvBlockRef> blocks(from.sequence->blocks().begin(),
                                         from.sequence->blocks().end());
    // As many as it can go on from.
    const auto n = static_cast<size_t>(
        RowsToGoOnFrom(engine_.info(), blocks,
                       Below(blocks.size() + 1) * int64_t{kBlockTokens}) /
        kBlockTokens);
    size_t text = Below(texts_.size());
    const auto& a = texts_[text].tokens;
    const auto& b = texts_[from.text].tokens;
    const size_t prefix = n * kBlockTokens;
    if (a.size() < prefix ||
        !std::equal(a.begin(), a.begin() + static_cast<ptrdiff_t>(prefix),
                    b.begin())) {
      text = from.text;
    }
    Start(text, std::span(blocks).first(n));
  }

  void Resume() {
    const size_t text = Below(texts_.size());
    const size_t n = Below(texts_[text].pages.size() + 1);
    const std::span<const TokenId> tokens(texts_[text].tokens);
    std::vector<RematJob> jobs(n);
    const int64_t first_whole =
        FirstWholeBlock(engine_.info(), static_cast<int64_t>(n) * kBlockTokens);
    for (size_t i = 0; i < n; ++i) {
      jobs[i].block_index = static_cast<int64_t>(i);
      jobs[i].page = texts_[text].pages[i];
      jobs[i].tokens = tokens.subspan(i * kBlockTokens, kBlockTokens);
      jobs[i].remat = AnyPolicy();
      jobs[i].whole = jobs[i].block_index >= first_whole || Below(8) == 0;
    }
    if (n > 0 && Below(2) == 0) {
      // Some of them beforehand, or others, and steps in between.
      const size_t first = Below(3) == 0 ? Below(n) : 0;
      engine_.StagePages(codec_,
                         std::span(jobs).subspan(first, 1 + Below(n - first)));
      if (Below(2) == 0) Step();
    }
    std::vector<KvBlockRef> blocks;
    for (auto& block : engine_.Remat(codec_, jobs)) {
      ASSERT_TRUE(block.ok()) << block.status();
      blocks.push_back(*std::move(block));
    }
    Start(text, blocks);
  }

  void Truncate() {
    Live& live = live_[Below(live_.size())];
    const size_t size = live.sequence->tokens().size();
    const size_t sealed = live.sequence->blocks().size() * kBlockTokens;
    const size_t to = Below(size + 1);
    const auto expected = static_cast<size_t>(RowsToGoOnFrom(
        engine_.info(), live.sequence->blocks(),
        static_cast<int64_t>(to >= sealed ? to : to - to % kBlockTokens)));
    ASSERT_EQ(live.sequence->Truncate(static_cast<int64_t>(to)),
              static_cast<int64_t>(expected));
    EXPECT_EQ(live.sequence->tokens().size(), expected);
    EXPECT_EQ(live.sequence->blocks().size(), expected / kBlockTokens);
  }

  void Step() {
    std::vector<StepItem> items;
    std::vector<const Live*> of;
    for (const Live& live : live_) {
      const auto& text = texts_[live.text];
      const size_t size = live.sequence->tokens().size();
      const size_t room = std::min(kBlockTokens - size % kBlockTokens,
                                   text.tokens.size() - size);
      if (room == 0 || Below(3) == 0) continue;
      StepItem item;
      item.sequence = live.sequence.get();
      const size_t n = Below(3) == 0 ? room : 1 + Below(room);
      item.tokens = std::span(text.tokens).subspan(size, n);
      const uint32_t mode = Below(5);
      item.logits_mode = mode == 0   ? LogitsMode::kNone
                         : mode == 1 ? LogitsMode::kLast
                                     : LogitsMode::kAll;
      items.push_back(item);
      of.push_back(&live);
    }
    const absl::Status status = engine_.Step(items);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < items.size(); ++i) Check(items[i], *of[i]);
  }

  void Check(const StepItem& item, const Live& live) {
    const auto vocab = static_cast<size_t>(engine_.info().vocab_size);
    const Reference& text = texts_[live.text];
    const size_t end = live.sequence->tokens().size();
    const size_t rows = item.logits.size() / vocab;
    const size_t wanted = item.logits_mode == LogitsMode::kNone ? 0
                          : item.logits_mode == LogitsMode::kLast
                              ? 1
                              : item.tokens.size();
    ASSERT_EQ(rows, wanted);
    for (size_t i = 0; i < rows; ++i) {
      const size_t at = end - rows + i;
      ExpectSameLogits(
          item.logits.subspan(i * vocab, vocab), text.logits[at], tolerance_,
          "codec " + std::string(codec_.spec()) + ", text " +
              std::to_string(live.text) + ", position " + std::to_string(at));
    }
    EXPECT_TRUE(std::equal(live.sequence->tokens().begin(),
                           live.sequence->tokens().end(), text.tokens.begin()));
    EXPECT_EQ(live.sequence->blocks().size(), end / kBlockTokens);
    if (Below(3) == 0) return;  // taken later, with others
    for (const SealedBlock& sealed : live.sequence->TakeSealed()) {
      const auto index = static_cast<size_t>(sealed.block_index);
      ASSERT_LT(index, text.pages.size());
      EXPECT_EQ(sealed.page == text.pages[index], true)
          << "page " << index << " differs, codec " << codec_.spec();
    }
  }

  Engine& engine_;
  const CodecHandle& codec_;
  const std::span<const Reference> texts_;
  std::mt19937 gen_;
  const float tolerance_;
  std::vector<Live> live_;
};

}  // namespace

void RunRandomActions(Engine& engine, const CodecHandle& codec,
                      std::span<const Reference> texts, int num_actions,
                      uint32_t seed, float tolerance) {
  RandomRun run(engine, codec, texts, seed, tolerance);
  for (int i = 0; i < num_actions && !::testing::Test::HasFailure(); ++i) {
    run.Action();
  }
}

}  // namespace xcache::testing
