#include "server/core/scheduler/restorer.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/unit/server/core/scheduler/parts_fixture.h"

namespace xcache::testing {
namespace {

constexpr size_t kPrompt = 300;  // 4 whole blocks that need not be computed

ServerCoreOptions With(ServerCoreOptions::Restore restore) {
  ServerCoreOptions options;
  options.restore = restore;
  return options;
}

struct Restored {
  explicit Restored(
      ServerCoreOptions::Restore restore = ServerCoreOptions::Restore::kAlways)
      : parts(With(restore)) {
    expected = parts.Answer(parts.Raw(kPrompt, 1))->text();
    parts.ForgetMemory();
  }
  // The same prompt once more; its answer is the same, whatever becomes of its
  // pages (rule R3).
  FinalInfo Again() {
    const auto sink = parts.Answer(parts.Raw(kPrompt, 1));
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->text(), expected);
    return sink->final();
  }
  Parts parts;
  std::string expected;
};

TEST(RestorerTest, PagesAreReadAndRematerialized) {
  Restored r;
  const auto request = r.parts.Raw(kPrompt, 1);
  r.parts.Admit(request);
  EXPECT_FALSE(r.parts.restorer.PlanAndRestore());  // nothing is read yet
  EXPECT_EQ(request->state, RequestState::kRestoring);
  EXPECT_FALSE(request->may_compute);
  EXPECT_EQ(request->restore.size(), 4u);
  r.parts.Finish(request);
  EXPECT_EQ(request->final.reused.host, 256u);
  EXPECT_EQ(request->final.prefilled_tokens, kPrompt - 256);
  EXPECT_EQ(r.parts.engine.remats(), 4);
  EXPECT_GT(r.parts.num_wakes, 0);
}

TEST(RestorerTest, APageThatIsGoneIsComputedAndCounted) {
  Restored r;
  r.parts.store.pages().Lose();
  const FinalInfo final = r.Again();
  EXPECT_EQ(final.reused.total(), 0u);
  EXPECT_EQ(final.prefilled_tokens, kPrompt);
  EXPECT_GE(r.parts.Count(CoreCounter::kPagesMissing), 1u);
}

TEST(RestorerTest, APageThatASessionNamesAndTheStoreHasNotIsCounted) {
  Parts parts(With(ServerCoreOptions::Restore::kAlways));
  parts.Answer(parts.Turn("s", Letters(200, 1)));
  const std::vector<PageKey> keys =
      parts.store.sessions().Load("t", "s").value().page_keys;
  ASSERT_EQ(keys.size(), 3u);
  parts.ForgetMemory();
  for (const PageKey& key : keys) {
    ASSERT_TRUE(parts.store.pages().Erase(key).ok());
  }
  parts.Answer(parts.Turn("s", "more"));
  EXPECT_EQ(parts.Count(CoreCounter::kPagesMissing), 3u);
}

TEST(RestorerTest, APageThatTheStoreFindsDamagedIsComputedAndCounted) {
  Restored r;
  r.parts.store.pages().Break();
  EXPECT_EQ(r.Again().prefilled_tokens, kPrompt);
  EXPECT_GE(r.parts.Count(CoreCounter::kPagesCorrupt), 1u);
  // It is there again for the next one.
  r.parts.ForgetMemory();
  EXPECT_GT(r.Again().reused.host, 0u);
}

TEST(RestorerTest, APageThatDoesNotRematerializeIsDroppedAndMadeAnew) {
  Restored r;
  r.parts.store.pages().Corrupt();
  EXPECT_EQ(r.Again().prefilled_tokens, kPrompt);
  EXPECT_GE(r.parts.Count(CoreCounter::kPagesCorrupt), 1u);
  r.parts.ForgetMemory();
  EXPECT_EQ(r.Again().reused.host, 256u);
}

TEST(RestorerTest, WithoutMemoryForAPageIdleOnesGoThenItIsComputed) {
  Restored r;
  r.parts.Answer(r.parts.Turn("s", Letters(80, 5)));
  ASSERT_TRUE(r.parts.working_sets.InMemory({"t", "s"}));
  r.parts.store.pages().set_load_refusals(1);
  EXPECT_EQ(r.Again().reused.host, 256u);  // at the second try
  EXPECT_FALSE(r.parts.working_sets.InMemory({"t", "s"}));
  r.parts.ForgetMemory();
  r.parts.store.pages().set_load_refusals(100);
  EXPECT_EQ(r.Again().prefilled_tokens, kPrompt);
}

TEST(RestorerTest, OnePrefixIsMadeOnce) {
  Restored r;
  const auto first = r.parts.Raw(kPrompt, 2);
  const auto second = r.parts.Raw(kPrompt, 2);
  r.parts.Admit(first);
  r.parts.Admit(second);
  r.parts.restorer.PlanAndRestore();
  EXPECT_TRUE(first->may_compute);
  EXPECT_FALSE(second->may_compute);
  EXPECT_TRUE(second->waiting);
  r.parts.restorer.PlanAndRestore();
  EXPECT_EQ(r.parts.Count(CoreCounter::kSingleFlightWaits), 1u);
  // Who fails leaves the block to the other.
  r.parts.finisher.Fail(*first, absl::CancelledError(""));
  r.parts.restorer.PlanAndRestore();
  EXPECT_TRUE(second->may_compute);
}

TEST(RestorerTest, NeverReadsWhatItIsToldNotToRead) {
  Restored r(ServerCoreOptions::Restore::kNever);
  EXPECT_EQ(r.Again().prefilled_tokens, kPrompt);
  EXPECT_EQ(r.parts.store.pages().gets(), 0);
}

TEST(RestorerTest, ComputesWhatIsCheaperToCompute) {
  Restored r(ServerCoreOptions::Restore::kByCost);
  for (int i = 0; i < 100; ++i) {
    r.parts.rates.AddPrefill(64, 1e-6);
    r.parts.rates.AddRemat(1, 1.0);
  }
  EXPECT_EQ(r.Again().prefilled_tokens, kPrompt);
  EXPECT_EQ(r.parts.Count(CoreCounter::kRecomputedByCost), 4u);
}

TEST(RestorerTest, ALoadThatNobodyWantsAnyMoreIsForgotten) {
  Restored r;
  r.parts.store.pages().set_load_delay(std::chrono::milliseconds(20));
  const auto request = r.parts.Raw(kPrompt, 1);
  r.parts.Admit(request);
  r.parts.restorer.PlanAndRestore();
  r.parts.finisher.Fail(*request, absl::CancelledError(""));
  r.parts.restorer.Stop();
  r.parts.restorer.TakeLoaded();
  EXPECT_LT(r.parts.store.pages().gets(), 4);
  EXPECT_EQ(r.parts.memory.used_bytes(), 0);
}

}  // namespace
}  // namespace xcache::testing
