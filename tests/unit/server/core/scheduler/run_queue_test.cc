#include "server/core/scheduler/run_queue.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/unit/server/core/scheduler/parts_fixture.h"

namespace xcache::testing {
namespace {

std::vector<uint64_t> Ids(const auto& requests) {
  std::vector<uint64_t> ids;
  for (const auto& request : requests) ids.push_back(request->id);
  return ids;
}
using IdList = std::vector<uint64_t>;

TEST(RunQueueTest, AFullQueueRefusesByRequestsAndByTokens) {
  ServerCoreOptions options;
  options.max_queue_requests = 2;
  options.max_queue_tokens = 100;
  Parts parts(options);
  // The first one may be as long as it likes.
  EXPECT_TRUE(parts.queue.Enter(parts.Raw(200, 1)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(parts.queue.Enter(parts.Raw(1, 2))));
  parts.queue.TakeEntered();
  parts.queue.Admit();
  EXPECT_TRUE(parts.queue.Enter(parts.Raw(50, 3)).ok());
  EXPECT_TRUE(parts.queue.Enter(parts.Raw(50, 4)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(parts.queue.Enter(parts.Raw(1, 5))));
  EXPECT_EQ(parts.Count(CoreCounter::kQueueRejections), 2u);
  CoreGauges gauges;
  parts.queue.FillGauges(&gauges);
  EXPECT_EQ(gauges.running, 1u);
  EXPECT_EQ(gauges.waiting, 2u);
  EXPECT_EQ(gauges.waiting_tokens, 100u);
  parts.queue.Close();
  EXPECT_TRUE(absl::IsUnavailable(parts.queue.Enter(parts.Raw(1, 6))));
}

TEST(RunQueueTest, WhoIsPutBackGoesOnBeforeAllThatCameLater) {
  ServerCoreOptions options;
  options.max_running = 3;
  Parts parts(options);
  for (uint32_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(parts.queue.Enter(parts.Raw(8, i)).ok());
  }
  parts.queue.TakeEntered();
  while (parts.queue.Next() != nullptr) parts.queue.Admit();
  EXPECT_EQ(Ids(parts.queue.running()), (IdList{1, 2, 3}));
  const auto second = parts.queue.running()[1];
  const auto third = parts.queue.running()[2];
  parts.queue.PutBack(*third);
  parts.queue.PutBack(*second);
  EXPECT_EQ(Ids(parts.queue.waiting()), (IdList{2, 3, 4, 5}));
  // For lack of memory: nobody is admitted until one that runs has ended.
  EXPECT_EQ(parts.queue.Next(), nullptr);
  parts.finisher.Fail(*parts.queue.running()[0], absl::CancelledError(""));
  while (parts.queue.Next() != nullptr) parts.queue.Admit();
  EXPECT_EQ(Ids(parts.queue.running()), (IdList{2, 3, 4}));
  EXPECT_TRUE(second->preempted);
}

TEST(RunQueueTest, EmptyOnceAllWereToldTheirEnd) {
  Parts parts;
  EXPECT_TRUE(parts.queue.WaitUntilEmpty(SteadyTime::min()));
  const auto request = parts.Raw(8, 1);
  parts.Admit(request);
  EXPECT_FALSE(parts.queue.WaitUntilEmpty(std::chrono::steady_clock::now()));
  std::thread waiter(
      [&] { EXPECT_TRUE(parts.queue.WaitUntilEmpty(SteadyTime::max())); });
  parts.Finish(request);
  waiter.join();
}

TEST(RunQueueTest, TheHintIsWhatTheQueueTakes) {
  Parts parts;
  EXPECT_EQ(parts.queue.RetryAfterMs(), 1000);  // nothing is known
  parts.rates.AddService(8.0);
  EXPECT_EQ(parts.queue.RetryAfterMs(), 8000);
  const std::vector<std::shared_ptr<ActiveRequest>> requests = {
      parts.Raw(8, 1), parts.Raw(8, 2)};
  for (const auto& request : requests) parts.Admit(request);
  // Two run, so one ends in half the time.
  EXPECT_NEAR(static_cast<double>(parts.queue.RetryAfterMs()), 4000, 100);
}

}  // namespace
}  // namespace xcache::testing
