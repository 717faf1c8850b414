#include "server/core/scheduler/working_sets.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/server/core/scheduler/parts_fixture.h"

namespace xcache::testing {
namespace {

// A request that runs and has so much reserved.
std::shared_ptr<ActiveRequest> Holder(Parts& parts, int64_t bytes) {
  const auto request = parts.Raw(8, static_cast<uint32_t>(parts.next_id));
  parts.Admit(request);
  request->next_blocks.push_back(
      parts.working_sets.Reserve(*request, bytes).value());
  return request;
}

TEST(WorkingSetsTest, IdleOnesGiveWayBeforeAnyThatRuns) {
  Parts parts({}, 10000);
  // A block of 1,000 bytes and a sequence of 500 stay after the turn.
  parts.Answer(parts.Turn("s", Letters(80, 1)));
  ASSERT_TRUE(parts.working_sets.InMemory({"t", "s"}));
  const auto first = Holder(parts, 4000);
  const auto second = Holder(parts, 4000);
  EXPECT_TRUE(parts.working_sets.InMemory({"t", "s"}));
  const auto memory = parts.working_sets.Reserve(*first, 2000);
  EXPECT_TRUE(memory.ok()) << memory.status();
  EXPECT_FALSE(parts.working_sets.InMemory({"t", "s"}));
  EXPECT_EQ(parts.Count(CoreCounter::kSequenceEvictions), 1u);
  EXPECT_EQ(parts.Count(CoreCounter::kPreemptions), 0u);
  EXPECT_FALSE(parts.Waits(*second));
}

TEST(WorkingSetsTest, TheIdleOneUsedLongestAgoGivesWayFirst) {
  Parts parts({}, 10000);
  for (const char* id : {"a", "b", "c"}) {
    parts.Answer(parts.Turn(id, Letters(10, 1)));  // 500 bytes each
  }
  parts.Answer(parts.Turn("a", "again"));
  const auto request = Holder(parts, parts.free_bytes() + 400);
  EXPECT_FALSE(parts.working_sets.InMemory({"t", "b"}));
  EXPECT_TRUE(parts.working_sets.InMemory({"t", "c"}));
  EXPECT_TRUE(parts.working_sets.InMemory({"t", "a"}));
}

TEST(WorkingSetsTest, TheYoungestThatRunsGivesWayToTheOldest) {
  Parts parts({}, 10000);
  const auto oldest = Holder(parts, 3000);
  const auto middle = Holder(parts, 3000);
  const auto youngest = Holder(parts, 3000);
  const auto without = parts.Raw(8, 7);  // holds nothing: nothing to be had
  parts.Admit(without);
  EXPECT_TRUE(parts.working_sets.Reserve(*oldest, 2000).ok());
  EXPECT_TRUE(parts.Waits(*youngest));
  EXPECT_FALSE(parts.Waits(*middle));
  EXPECT_FALSE(parts.Waits(*without));
  EXPECT_TRUE(youngest->next_blocks.empty());
  EXPECT_EQ(parts.Count(CoreCounter::kPreemptions), 1u);
}

TEST(WorkingSetsTest, OfSeveralTenantsTheOneWithMostGivesWay) {
  Parts parts({}, 10000);
  const auto first = Holder(parts, 3000);
  const auto second = Holder(parts, 3000);
  const auto other = Holder(parts, 3000);  // the youngest of all
  other->base.tenant = "other";
  EXPECT_TRUE(parts.working_sets.Reserve(*other, 2000).ok());
  EXPECT_TRUE(parts.Waits(*second));
  EXPECT_FALSE(parts.Waits(*first));
  EXPECT_FALSE(parts.Waits(*other));
  // Of one each, the youngest.
  const auto memory =
      parts.working_sets.Reserve(*first, parts.free_bytes() + 1);
  EXPECT_TRUE(memory.ok()) << memory.status();
  EXPECT_TRUE(parts.Waits(*other));
}

TEST(WorkingSetsTest, TheYoungestIsPutBackWhereItAsksItself) {
  Parts parts({}, 10000);
  const auto oldest = Holder(parts, 5000);
  const auto youngest = Holder(parts, 4000);
  const auto memory = parts.working_sets.Reserve(*youngest, 2000);
  EXPECT_TRUE(absl::IsUnavailable(memory.status())) << memory.status();
  EXPECT_TRUE(parts.Waits(*youngest));
  EXPECT_FALSE(parts.Waits(*oldest));
}

TEST(WorkingSetsTest, AloneItTriesAgainOrIsToldThatItNeverFits) {
  Parts parts({}, 10000);
  auto others = parts.memory.TryReserve(MemoryAccount::kRequests, 8000);
  const auto alone = Holder(parts, 1000);
  EXPECT_TRUE(
      absl::IsUnavailable(parts.working_sets.Reserve(*alone, 2000).status()));
  EXPECT_NE(alone->stalled_since, SteadyTime());
  others.reset();  // what others gave back
  EXPECT_TRUE(parts.working_sets.Reserve(*alone, 2000).ok());
  EXPECT_EQ(alone->stalled_since, SteadyTime());
  // Of 1,000 tokens there are 17 blocks.
  alone->tokens.resize(1000, 'a');
  EXPECT_TRUE(absl::IsResourceExhausted(
      parts.working_sets.Reserve(*alone, 20000).status()));
}

// Sequences are the scheduler's thread's.
TEST(WorkingSetsTest, AnotherThreadGetsBlocksAtOnceAndSequencesLater) {
  Parts parts({}, 10000);
  parts.Answer(parts.Turn("s", Letters(80, 1)));  // an idle sequence
  parts.Answer(parts.Raw(80, 2));                 // a block that nobody holds
  EXPECT_EQ(parts.memory.used_bytes(), 2500);
  std::thread other([&] {
    EXPECT_TRUE(
        parts.memory.Reserve(MemoryAccount::kRequests, 8500).has_value());
    EXPECT_FALSE(
        parts.memory.Reserve(MemoryAccount::kRequests, 9000).has_value());
  });
  other.join();
  EXPECT_TRUE(parts.working_sets.InMemory({"t", "s"}));
  EXPECT_GT(parts.num_wakes, 0);
  parts.working_sets.DropWanted();
  EXPECT_FALSE(parts.working_sets.InMemory({"t", "s"}));
  EXPECT_EQ(parts.memory.used_bytes(), 1000);  // its block, held by nobody
}

TEST(WorkingSetsTest, AnIdleSetIsTakenAsFarAsThePromptIsThat) {
  Parts parts;
  parts.Answer(parts.Turn("s", Letters(100, 1), 8));
  const auto next = parts.Turn("s", "more");
  const size_t history = next->lease->record().tokens.size();
  parts.Admit(next);
  // The last sampled token and the template's end have no rows yet.
  EXPECT_GE(next->live.num_rows(), static_cast<int64_t>(history) - 3);
  EXPECT_LT(next->live.num_rows(), static_cast<int64_t>(history));
  EXPECT_EQ(next->final.reused.device,
            static_cast<uint64_t>(next->live.num_rows()));
  EXPECT_FALSE(parts.working_sets.InMemory({"t", "s"}));
}

TEST(WorkingSetsTest, AFullDevicePutsBackTheYoungestAndNeverTheLast) {
  Parts parts;
  const auto oldest = Holder(parts, 1000);
  const auto youngest = Holder(parts, 1000);
  EXPECT_TRUE(parts.working_sets.MakeRoomOnDevice());
  EXPECT_TRUE(parts.Waits(*youngest));
  EXPECT_FALSE(parts.working_sets.MakeRoomOnDevice());
  EXPECT_FALSE(parts.Waits(*oldest));
}

}  // namespace
}  // namespace xcache::testing
