// A turn on a copy of a session: the store is asked while the prompt is
// computed, and nobody hears of the turn before it has said that nothing has
// changed.
#include <memory>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "server/core/reason.h"
#include "server/core/server_core.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

class CoreCheckTest : public ::testing::Test {
 protected:
  CoreCheckTest() {
    h_.store.sessions().KeepCopies();
    h_.NewSession("s");
    EXPECT_TRUE(h_.Chat(Expecting(0))->status().ok());
  }

  ChatTurn Expecting(uint64_t turn, int64_t max_tokens = 16) const {
    ChatTurn asked = h_.Turn("s", "more", max_tokens);
    asked.expected_turn = turn;
    return asked;
  }
  // A turn that waits for the store's answer, in a thread that does.
  void Start(ChatTurn turn) {
    h_.store.sessions().HoldLoads(true);
    asker_ = std::thread([this, turn = std::move(turn)]() mutable {
      h_.core->SubmitChat(std::move(turn), sink_);
    });
    while (h_.store.sessions().num_held() == 0) std::this_thread::yield();
  }
  void Answer() {
    h_.store.sessions().HoldLoads(false);
    sink_->Wait();
    asker_.join();
  }
  // Nothing was heard of the turn, and nothing is left of it.
  void ExpectNothing(uint64_t turns) {
    EXPECT_EQ(sink_->text(), "");
    EXPECT_EQ(h_.store.sessions().commits(), commits_);
    EXPECT_EQ(h_.Record("s").turn, turns);
  }

  Harness h_;
  int64_t commits_ = 2;
  std::shared_ptr<CollectSink> sink_ = std::make_shared<CollectSink>();
  std::thread asker_;
};

TEST_F(CoreCheckTest, ThePromptIsComputedMeanwhileAndTheAnswerHeldBack) {
  for (const int64_t max_tokens : {1, 16, 600}) {
    const SessionRecord before = h_.Record("s");
    const std::string answer =
        h_.Greedy(h_.PromptOf(before, "more"), static_cast<int>(max_tokens));
    sink_ = std::make_shared<CollectSink>();
    const int64_t steps = h_.engine->steps();
    Start(Expecting(before.turn, max_tokens));
    while (h_.engine->steps() == steps) std::this_thread::yield();
    EXPECT_EQ(sink_->text(), "");
    EXPECT_FALSE(sink_->finished());
    Answer();
    ASSERT_TRUE(sink_->status().ok()) << sink_->status();
    EXPECT_EQ(sink_->text(), answer);
    EXPECT_EQ(h_.Record("s").turn, before.turn + 1);
    EXPECT_EQ(h_.Record("s").messages.back().content, answer);
  }
}

TEST_F(CoreCheckTest, ATurnElsewhereEndsThisOne) {
  Start(Expecting(1));
  SessionRecord elsewhere = h_.store.sessions().LoadCopy("t", "s").value();
  ++elsewhere.turn;
  h_.store.sessions().Change(elsewhere);
  Answer();
  EXPECT_EQ(sink_->status().code(), absl::StatusCode::kAborted);
  EXPECT_NE(sink_->status().message().find("2 turns, not 1"),
            absl::string_view::npos)
      << sink_->status();
  ExpectNothing(2);
  // It is known from now on.
  EXPECT_TRUE(h_.Chat(Expecting(2))->status().ok());
}

TEST_F(CoreCheckTest, AnotherChangeElsewhereEndsItToo) {
  Start(Expecting(1));
  SessionRecord elsewhere = h_.store.sessions().LoadCopy("t", "s").value();
  elsewhere.title = "another";
  h_.store.sessions().Change(elsewhere);
  Answer();
  EXPECT_EQ(sink_->status().code(), absl::StatusCode::kAborted);
  ExpectNothing(1);
  ASSERT_TRUE(h_.Chat(Expecting(1))->status().ok());
  EXPECT_EQ(h_.Record("s").title, "another");
}

TEST_F(CoreCheckTest, WhatIsChangedHereIsNoOtherVersion) {
  Start(Expecting(1));
  std::thread pinning([&] {
    EXPECT_TRUE(h_.core->UpdateSession("t", "s", Pinned(true)).ok());
  });
  Answer();
  pinning.join();
  EXPECT_TRUE(sink_->status().ok()) << sink_->status();
  EXPECT_TRUE(h_.Record("s").pinned);
  EXPECT_EQ(h_.Record("s").turn, 2u);
}

TEST_F(CoreCheckTest, AStoreThatIsAwayEndsIt) {
  Start(Expecting(1));
  h_.store.sessions().SetLoadStatus(absl::UnavailableError("no route"));
  Answer();
  EXPECT_EQ(sink_->status().code(), absl::StatusCode::kUnavailable);
  h_.store.sessions().SetLoadStatus(absl::OkStatus());
  ExpectNothing(1);
}

TEST_F(CoreCheckTest, ACopyThatIsBehindIsNotGoneOnWith) {
  SessionRecord elsewhere = h_.Record("s");
  ++elsewhere.turn;
  h_.store.sessions().Change(elsewhere);
  // Who says what is expected gets it; who does not, what there is.
  EXPECT_TRUE(h_.Chat(Expecting(2))->status().ok());
  elsewhere = h_.Record("s");
  ++elsewhere.turn;
  h_.store.sessions().Change(elsewhere);
  EXPECT_TRUE(h_.Chat(h_.Turn("s", "more"))->status().ok());
  EXPECT_EQ(h_.Record("s").turn, 5u);
}

}  // namespace
}  // namespace xcache::testing
