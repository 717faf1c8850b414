#include "server/frontend/output_queue.h"

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace xcache {

// Found by OutputQueue.
struct TestText {
  std::string text;
};
void Join(TestText more, TestText* into) { into->text += more.text; }

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class OutputQueueTest : public ::testing::Test {
 protected:
  void Push(const std::string& text) { queue_.Push({text}, text.size()); }

  const std::shared_ptr<Cancellation> cancellation_ =
      std::make_shared<Cancellation>();
  OutputQueue<TestText> queue_{
      StreamLimits{.stall = milliseconds(100), .queued_bytes = 40'000},
      cancellation_};
};

TEST_F(OutputQueueTest, WhatComesDuringAWriteIsJoined) {
  EXPECT_FALSE(queue_.Next().write);
  Push("a");
  auto step = queue_.Next();
  ASSERT_TRUE(step.write && !step.end);
  EXPECT_EQ(step.message.text, "a");
  Push("b");
  Push("c");
  EXPECT_FALSE(queue_.Next().write);  // one at a time
  EXPECT_FALSE(queue_.idle());
  queue_.WriteDone(true);
  EXPECT_EQ(queue_.Next().message.text, "bc");
  queue_.WriteDone(true);
  EXPECT_TRUE(queue_.idle());
}

TEST_F(OutputQueueTest, JoinedMessagesStaySmall) {
  const std::string text(10'000, 'x');
  for (int i = 0; i < 3; ++i) Push(text);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(queue_.Next().message.text.size(), text.size());
    queue_.WriteDone(true);
  }
  EXPECT_FALSE(queue_.Next().write);
}

TEST_F(OutputQueueTest, TheEndComesOnceWithTheLastMessage) {
  Push("a");
  queue_.SetEnd(/*drop=*/false, TestText{"z"});
  Push("late");
  queue_.SetEnd(/*drop=*/true, TestText{"later"});
  auto step = queue_.Next();
  EXPECT_TRUE(step.write && !step.end);
  queue_.WriteDone(true);
  step = queue_.Next();
  EXPECT_TRUE(step.write && step.end);
  EXPECT_EQ(step.message.text, "z");
  queue_.WriteDone(true);
  step = queue_.Next();
  EXPECT_FALSE(step.write || step.end);
}

TEST_F(OutputQueueTest, AnEndMayDropWhatWaits) {
  Push("a");
  queue_.SetEnd(/*drop=*/true, std::nullopt);
  const auto step = queue_.Next();
  EXPECT_TRUE(!step.write && step.end);
}

TEST_F(OutputQueueTest, AReaderThatLetsTooMuchPileUpIsGivenUp) {
  Push("a");
  queue_.Next();
  for (int i = 0; i < 5; ++i) Push(std::string(10'000, 'x'));
  EXPECT_TRUE(cancellation_->cancelled());
  EXPECT_TRUE(queue_.gave_up());
  queue_.WriteDone(true);
  EXPECT_FALSE(queue_.Next().write);
  const absl::Status status = queue_.Explain(absl::CancelledError("cancelled"));
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(ReasonOf(status).id, Reason::kSlowReader);
  EXPECT_TRUE(absl::IsInternal(queue_.Explain(absl::InternalError("x"))));
}

TEST_F(OutputQueueTest, AReaderThatStallsIsGivenUpThenCutOff) {
  Push("a");
  queue_.Next();
  const auto now = steady_clock::now();
  EXPECT_FALSE(queue_.Check(now));
  EXPECT_FALSE(cancellation_->cancelled());
  EXPECT_FALSE(queue_.Check(now + milliseconds(150)));
  EXPECT_TRUE(cancellation_->cancelled());
  EXPECT_TRUE(queue_.Check(now + milliseconds(250)));
  queue_.WriteDone(true);
  EXPECT_FALSE(queue_.Check(now + milliseconds(250)));
}

TEST_F(OutputQueueTest, AWriteThatFailsCancels) {
  Push("a");
  queue_.Next();
  Push("b");
  queue_.WriteDone(false);
  EXPECT_TRUE(cancellation_->cancelled());
  EXPECT_FALSE(queue_.Next().write);
  // That was no slow reader.
  EXPECT_TRUE(
      absl::IsCancelled(queue_.Explain(absl::CancelledError("cancelled"))));
}

}  // namespace
}  // namespace xcache
