// Rule R9: drafts change neither ids nor the bits of log-probabilities, and
// leave no trace in what is kept. Drafts are forced, right and wrong ones, on
// real engines, in batches, with all that a turn may be like.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/xcache/codec.h"
#include "tests/unit/server/core/real_core.h"

namespace xcache::testing {
namespace {

constexpr int kKinds = 9;

std::string Id(int i) { return "s" + std::to_string(i); }

// Turn `round` of session `i`, whose turns are of a kind.
ChatTurn TurnOfKind(int i, uint32_t round) {
  ChatTurn turn = TurnOf(Id(i), 10 * round + static_cast<uint32_t>(i),
                         20 + 13 * static_cast<size_t>(i));
  GenerationOptions& options = turn.options;
  options.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
  switch (i) {
    case 2:
    case 3:
      options.sampling.repetition_penalty = 1.2f;
      options.sampling.frequency_penalty = 0.3f;
      break;
    case 4:
    case 5:
      options.stop = {"e", "th", "1"};
      break;
    case 6:
      options.no_cache = true;
      break;
    case 7:
      options.ignore_eos = false;
      options.grammar.kind = GrammarSpec::Kind::kRegex;
      options.grammar.text = "[a-z]{20,60}";
      break;
    case 8:
      options.max_tokens = 1 + static_cast<int64_t>(round) * 2;
      break;
    default:
      break;
  }
  return turn;
}

// One after another: what each session was told. Forks, answers anew and turns
// that are cancelled come in between.
struct Story {
  std::vector<std::vector<SampledToken>> answers;
  std::vector<std::string> texts;
  std::vector<FinishReason> reasons;
  std::vector<SessionRecord> records;
  std::vector<std::string> pages;
  uint64_t drafted = 0, accepted = 0;
};

class CoreDraftTest : public CoreEngineTest {
 protected:
  // All sessions' turns of a round at once, or one by one.
  void Round(RealCore& core, uint32_t round, bool together, Story* story) {
    std::vector<std::shared_ptr<CollectSink>> sinks;
    for (int i = 0; i < num_sessions_; ++i) {
      sinks.push_back(core.Start(TurnOfKind(i, round)));
      if (!together) sinks.back()->Wait();
    }
    for (const auto& sink : sinks) Add(*sink, story);
  }

  void Add(CollectSink& sink, Story* story) {
    sink.Wait();
    ASSERT_TRUE(sink.status().ok()) << sink.status();
    const FinalInfo final = sink.final();
    EXPECT_LE(final.accepted_tokens, final.drafted_tokens);
    story->answers.push_back(sink.tokens());
    story->texts.push_back(sink.text());
    story->reasons.push_back(final.finish_reason);
    story->drafted += final.drafted_tokens;
    story->accepted += final.accepted_tokens;
  }

  Story Tell(const std::string& dir, const ServerCoreOptions& options,
             decltype(&MakeCpuEngine) make_engine, bool together) {
    Story story;
    const std::vector<std::string> codecs = CodecNames();
    {
      RealCore core(Dir(dir), options, 256 << 20, 2, make_engine);
      for (int i = 0; i < num_sessions_; ++i) {
        core.NewSession(Id(i), Letters(150, 7),
                        make_engine == &MakeCpuEngine
                            ? codecs[static_cast<size_t>(i) % codecs.size()]
                            : "xquant-gqa:bits=4",
                        i % 2 == 0 ? "resume" : "step");
      }
      Round(core, 0, together, &story);
      // Cancelled at its first token: as if it never was.
      ChatTurn cancelled = TurnOfKind(0, 50);
      cancelled.cancellation = std::make_shared<Cancellation>();
      cancelled.options.max_tokens = 1000;
      const auto sink = core.Start(cancelled);
      sink->WaitForDelta();
      cancelled.cancellation->Cancel();
      sink->Wait();
      EXPECT_TRUE(absl::IsCancelled(sink->status())) << sink->status();
      Round(core, 1, together, &story);
      EXPECT_TRUE(core.core().ForkSession(Fork("t", Id(1), "f", 3)).ok());
      ChatTurn forked = TurnOfKind(1, 2);
      forked.session_id = "f";
      Add(*core.Chat(forked), &story);
      ChatTurn again = TurnOfKind(num_sessions_ - 1, 3);
      again.messages.clear();
      again.regenerate = true;
      Add(*core.Chat(again), &story);
    }
    // After a restart, from the pages.
    RealCore core(Dir(dir), options, 256 << 20, 2, make_engine);
    Round(core, 4, together, &story);
    for (int i = 0; i < num_sessions_; ++i) {
      SessionRecord record = core.store().sessions().Load("t", Id(i)).value();
      for (const PageKey& key : record.page_keys) {
        const auto hit = core.store().pages().Get(key);
        story.pages.emplace_back(hit.ok() ? hit->page->bytes() : "");
      }
      story.records.push_back(std::move(record));
    }
    EXPECT_EQ(core.metrics.counter(CoreCounter::kPagesCorrupt), 0u);
    EXPECT_EQ(core.metrics.counter(CoreCounter::kPagesMissing), 0u);
    return story;
  }

  void ExpectSameStory(const Story& a, const Story& b) {
    ASSERT_EQ(a.answers.size(), b.answers.size());
    for (size_t i = 0; i < a.answers.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(a.answers[i], b.answers[i]);
    }
    EXPECT_EQ(a.texts, b.texts);
    EXPECT_EQ(a.reasons, b.reasons);
    ASSERT_EQ(a.records.size(), b.records.size());
    for (size_t i = 0; i < a.records.size(); ++i) {
      EXPECT_EQ(a.records[i].tokens, b.records[i].tokens);
      EXPECT_EQ(a.records[i].page_keys, b.records[i].page_keys);
      EXPECT_EQ(a.records[i].page_bytes, b.records[i].page_bytes);
    }
    EXPECT_EQ(a.pages, b.pages);  // every byte
  }

  // As without drafts, and forced ones.
  Story Run(decltype(&MakeCpuEngine) make_engine, int num_sessions,
            const std::vector<uint32_t>& seeds) {
    num_sessions_ = num_sessions;
    const Story off = Tell("off", Restoring(), make_engine, false);
    EXPECT_GT(off.pages.size(), 4u * static_cast<size_t>(num_sessions - 1));
    EXPECT_EQ(off.drafted, 0u);

    std::set<std::vector<TokenId>> truths;
    for (const SessionRecord& record : off.records) {
      truths.emplace(record.tokens.begin(), record.tokens.end());
    }
    for (const uint32_t seed : seeds) {
      ServerCoreOptions forced = Restoring(/*step_rows=*/seed == 1 ? 128 : 40);
      forced.speculate = true;
      forced.draft = [&truths, random = std::make_shared<std::mt19937>(seed)](
                         std::span<const TokenId> context, size_t most) {
        std::vector<TokenId> draft((*random)() % (most + 1));
        const std::vector<TokenId> said(context.begin(), context.end());
        const auto truth = truths.lower_bound(said);
        for (size_t i = 0; i < draft.size(); ++i) {
          const size_t at = said.size() + i;
          const bool knows =
              truth != truths.end() && truth->size() > at &&
              std::equal(said.begin(), said.end(), truth->begin());
          draft[i] = knows && (*random)() % 10 > 0
                         ? (*truth)[at]
                         : static_cast<TokenId>((*random)() % 100);
        }
        return draft;
      };
      const Story story =
          Tell("forced" + std::to_string(seed), forced, make_engine, true);
      ExpectSameStory(story, off);
      EXPECT_GT(story.accepted, 100u);
      EXPECT_GT(story.drafted, story.accepted + 100);
    }
    return off;
  }

 private:
  int num_sessions_ = 0;
};

TEST_F(CoreDraftTest, ChangeNothingOnTheCpu) {
  const Story off = Run(&MakeCpuEngine, kKinds, {1, 2});
  for (const FinishReason reason :
       {FinishReason::kEnd, FinishReason::kStop, FinishReason::kMaxTokens}) {
    EXPECT_NE(std::find(off.reasons.begin(), off.reasons.end(), reason),
              off.reasons.end());
  }
  // As servers do it, by what is said and what it costs here and now.
  ServerCoreOptions ngram = Restoring();
  ngram.speculate = true;
  const Story story = Tell("ngram", ngram, &MakeCpuEngine, true);
  ExpectSameStory(story, off);
  EXPECT_GT(story.drafted, 0u);
}

TEST_F(CoreDraftTest, ChangeNothingOnADevice) {
  if (std::getenv("XCACHE_DEVICE_DRAFTS") == nullptr) {
    GTEST_SKIP() << "two minutes on the emulation: XCACHE_DEVICE_DRAFTS=1";
  }
  Run(&MakeDeviceEngine, 2, {1});
}

TEST_F(CoreDraftTest, AreForRequestsThatWantThem) {
  ServerCoreOptions options = Restoring();
  const auto two = [](std::span<const TokenId>, size_t most) {
    return std::vector<TokenId>(std::min<size_t>(2, most));
  };
  options.draft = two;
  for (const bool speculate : {false, true}) {
    options.speculate = speculate;
    RealCore core(Dir(speculate ? "on" : "off"), options);
    for (const char* choice : {"", "ngram", "off"}) {
      ChatTurn turn = TurnOf("", 1);
      turn.options.speculate = choice;
      const auto sink = core.Chat(turn);
      ASSERT_TRUE(sink->status().ok()) << sink->status();
      const bool drafts = choice[0] == '\0' ? speculate : choice[0] == 'n';
      EXPECT_EQ(sink->final().drafted_tokens > 0, drafts) << choice;
    }
    EXPECT_EQ(core.metrics.counter(CoreCounter::kDraftedTokens) > 0, true);
    ChatTurn turn = TurnOf("", 1);
    turn.options.speculate = "on";
    const absl::Status status = core.Chat(turn)->status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find("speculate"), std::string::npos);
  }
}

}  // namespace
}  // namespace xcache::testing
