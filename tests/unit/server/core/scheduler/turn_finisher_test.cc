#include "server/core/scheduler/turn_finisher.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/unit/server/core/scheduler/parts_fixture.h"

namespace xcache::testing {
namespace {

SessionRecord Stored(Parts& parts, const std::string& id) {
  return parts.store.sessions().Load("t", id).value();
}

TEST(TurnFinisherTest, AnAnsweredTurnIsTheSessionsRecord) {
  Parts parts;
  const auto sink = parts.Answer(parts.Turn("s", Letters(150, 1), 8));
  const FinalInfo final = sink->final();
  EXPECT_EQ(final.finish_reason, FinishReason::kMaxTokens);
  EXPECT_EQ(final.turn, 1u);
  const SessionRecord record = Stored(parts, "s");
  ASSERT_EQ(record.messages.size(), 2u);
  EXPECT_EQ(record.messages[1].content, sink->text());
  EXPECT_EQ(record.messages[1].token_end, record.tokens.size());
  EXPECT_EQ(record.page_keys.size(), record.tokens.size() / 64);
  EXPECT_EQ(parts.Count(CoreCounter::kCommits), 1u);
  EXPECT_EQ(parts.Count(CoreCounter::kGeneratedTokens), 8u);
}

TEST(TurnFinisherTest, AFailedTurnLeavesItsSessionAsItWas) {
  Parts parts;
  parts.Answer(parts.Turn("s", Letters(150, 1), 8));
  const SessionRecord before = Stored(parts, "s");
  const auto request = parts.Turn("s", Letters(150, 2), 100);
  const auto sink = Parts::SinkOf(*request);
  parts.Admit(request);
  while (request->generated() < 3) parts.Round();
  parts.finisher.Fail(*request, absl::CancelledError("by the caller"));
  sink->Wait();
  EXPECT_TRUE(absl::IsCancelled(sink->status()));
  EXPECT_EQ(sink->final().durability, Durability::kNone);
  EXPECT_TRUE(Stored(parts, "s") == before);
  // What it had in memory is rolled back with it, to a block's start at worst.
  const auto next = parts.Turn("s", "instead");
  parts.Admit(next);
  EXPECT_LE(next->live.num_rows(), static_cast<int64_t>(before.tokens.size()));
  EXPECT_GE(next->live.num_rows(), 128);
}

TEST(TurnFinisherTest, TheLastMessageSaysWhereTheTurnIs) {
  struct Case {
    absl::Status commit;
    absl::StatusCode code;
    Durability durability;
  };
  for (const Case& c : {
           Case{absl::OkStatus(), absl::StatusCode::kOk, Durability::kLocal},
           Case{absl::ResourceExhaustedError("the disk is full"),
                absl::StatusCode::kOk, Durability::kMemory},
           Case{absl::UnavailableError("I/O error"), absl::StatusCode::kOk,
                Durability::kMemory},
       }) {
    Parts parts;
    const auto request = parts.Turn("s", "hello");
    parts.store.sessions().SetCommitStatus(c.commit);
    const auto sink = parts.Answer(request);
    EXPECT_EQ(sink->status().code(), c.code) << c.commit;
    EXPECT_EQ(sink->final().durability, c.durability) << c.commit;
    EXPECT_EQ(parts.Count(CoreCounter::kCommits), c.commit.ok() ? 1u : 0u);
    EXPECT_EQ(parts.Count(CoreCounter::kCommitFailures),
              c.commit.ok() ? 0u : 1u);
    parts.store.sessions().SetCommitStatus(absl::OkStatus());
  }
}

TEST(TurnFinisherTest, ATurnThatIsNotKeptFails) {
  for (const absl::Status& error :
       {absl::ResourceExhaustedError("no memory to keep it"),
        absl::AbortedError("another server was first"),
        absl::UnavailableError("the shared store is away")}) {
    Parts parts;
    const auto request = parts.Turn("s", "hello");
    const SessionRecord before = Stored(parts, "s");
    parts.store.sessions().SetCommitError(error);
    const auto sink = parts.Answer(request);
    EXPECT_EQ(sink->status().code(), error.code());
    EXPECT_EQ(sink->final().durability, Durability::kNone);
    EXPECT_EQ(sink->final().finish_reason, FinishReason::kNone);
    EXPECT_EQ(parts.Count(CoreCounter::kCommitFailures), 1u);
    EXPECT_TRUE(Stored(parts, "s") == before);
    parts.store.sessions().SetCommitError(absl::OkStatus());
  }
}

// Does something at the end.
class EndSink final : public RequestSink {
 public:
  explicit EndSink(std::function<void()> at_end) : at_end_(std::move(at_end)) {}
  void OnDelta(std::string_view, std::span<const SampledToken>) override {}
  void OnFinish(const absl::Status&, const FinalInfo&) override { at_end_(); }

 private:
  const std::function<void()> at_end_;
};

TEST(TurnFinisherTest, TheSessionIsFreeAndSyncedBeforeItsCallerHears) {
  Parts parts;
  bool free = false;
  uint64_t turn = 0;
  const auto request = parts.Turn("s", "hello");
  request->sink = std::make_shared<EndSink>([&] {
    turn = Stored(parts, "s").turn;
    free = parts.sessions.Begin("t", "s", std::nullopt).ok();
  });
  parts.Admit(request);
  while (request->state != RequestState::kDone) parts.Round();
  EXPECT_TRUE(parts.queue.WaitUntilEmpty(SteadyTime::max()));
  EXPECT_TRUE(free);
  EXPECT_EQ(turn, 1u);
}

TEST(TurnFinisherTest, WithoutMemoryAnAnswerEndsWhereItIsAndAPromptFails) {
  Parts parts;
  const absl::Status no_memory = absl::ResourceExhaustedError("no memory");
  const auto answered = parts.Turn("s", "hello", 100);
  const auto answer = Parts::SinkOf(*answered);
  parts.Admit(answered);
  while (answered->generated() < 3) parts.Round();
  parts.finisher.FailOrCut(*answered, no_memory);
  answer->Wait();
  EXPECT_TRUE(answer->status().ok());
  EXPECT_EQ(answer->final().finish_reason, FinishReason::kContext);
  EXPECT_EQ(Stored(parts, "s").turn, 1u);

  const auto prompt = parts.Turn("s", "again", 100);
  const auto refused = Parts::SinkOf(*prompt);
  parts.Admit(prompt);
  parts.finisher.FailOrCut(*prompt, no_memory);
  refused->Wait();
  EXPECT_TRUE(absl::IsResourceExhausted(refused->status()));
  EXPECT_GT(refused->final().retry_after_ms, 0);
  EXPECT_EQ(Stored(parts, "s").turn, 1u);
}

TEST(TurnFinisherTest, WhatNeverEnteredIsToldOnceAndFreesItsSession) {
  Parts parts;
  const auto request = parts.Turn("s", "hello");
  const auto sink = Parts::SinkOf(*request);
  parts.finisher.Refuse(*request, absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(sink->finished());
  EXPECT_EQ(sink->final().retry_after_ms, 1000);
  EXPECT_TRUE(parts.sessions.Begin("t", "s", std::nullopt).ok());
}

}  // namespace
}  // namespace xcache::testing
