#include "server/core/scheduler/run_queue.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
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

std::shared_ptr<ActiveRequest> Of(Parts& parts, const std::string& tenant,
                                  size_t num_tokens) {
  auto request = parts.Raw(num_tokens, static_cast<uint32_t>(parts.next_id));
  request->base.tenant = tenant;
  return request;
}

// How many of a hundred requests of so many tokens enter.
int Flood(Parts& parts, const std::string& tenant, size_t num_tokens) {
  int entered = 0;
  for (int i = 0; i < 100; ++i) {
    if (parts.queue.Enter(Of(parts, tenant, num_tokens)).ok()) ++entered;
  }
  return entered;
}

TEST(RunQueueTest, NoTenantOfSeveralFillsTheQueue) {
  ServerCoreOptions options;
  options.max_queue_requests = 16;
  options.max_queue_tokens = 1000;
  {
    Parts alone(options);
    alone.tenants.SetPolicies({{"a", {}}});
    EXPECT_EQ(Flood(alone, "a", 1), 16);
  }
  {
    Parts parts(options);
    parts.tenants.SetPolicies({{"a", {}}, {"b", {}}, {"c", {}}});
    EXPECT_EQ(Flood(parts, "a", 1), 14);
    EXPECT_EQ(Flood(parts, "b", 1), 2);
    EXPECT_EQ(parts.Count(CoreCounter::kQueueRejections), 86u + 98u);
    EXPECT_EQ(ReasonOf(parts.queue.Enter(Of(parts, "a", 1))).id,
              Reason::kQueueFull);
  }
  Parts parts(options);
  parts.tenants.SetPolicies({{"a", {}}, {"b", {}}});
  EXPECT_EQ(Flood(parts, "a", 100), 8);  // 800 tokens
  EXPECT_EQ(Flood(parts, "b", 100), 1);
  // What has left the queue is free again, for whoever has less of it.
  parts.queue.TakeEntered();
  parts.queue.Admit();
  EXPECT_EQ(Flood(parts, "b", 50), 3);
}

TEST(RunQueueTest, NoTenantOfSeveralTakesAllPlacesToRun) {
  ServerCoreOptions options;
  options.max_running = 16;
  Parts parts(options);
  parts.tenants.SetPolicies({{"a", {}}, {"b", {}}});
  Flood(parts, "a", 1);
  parts.queue.TakeEntered();
  while (parts.queue.Next() != nullptr) parts.queue.Admit();
  EXPECT_EQ(parts.queue.running().size(), 14u);
  const auto late = Of(parts, "b", 1);
  ASSERT_TRUE(parts.queue.Enter(late).ok());
  parts.queue.TakeEntered();
  EXPECT_EQ(parts.queue.Next(), late.get());
}

TEST(RunQueueTest, TheTenantThatRunsLeastForItsWeightIsNext) {
  ServerCoreOptions options;
  options.max_running = 9;
  Parts parts(options);
  TenantPolicies policies = {{"a", {}}, {"b", {}}};
  policies["b"].weight = 2;
  parts.tenants.SetPolicies(policies);
  Flood(parts, "a", 1);
  Flood(parts, "b", 1);
  parts.queue.TakeEntered();
  while (parts.queue.Next() != nullptr) parts.queue.Admit();
  std::map<std::string, int> run;
  for (const auto& request : parts.queue.running()) ++run[request->base.tenant];
  EXPECT_EQ(run["a"], 3);
  EXPECT_EQ(run["b"], 6);
  // Each in its order.
  uint64_t last = 0;
  for (const auto& request : parts.queue.running()) {
    if (request->base.tenant != "b") continue;
    EXPECT_GT(request->id, last);
    last = request->id;
  }
}

TEST(RunQueueTest, WhoWasPutBackHoldsUpItsOwnTenantOnly) {
  Parts parts;
  parts.tenants.SetPolicies({{"a", {}}, {"b", {}}});
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(parts.queue.Enter(Of(parts, "a", 1)).ok());
  }
  parts.queue.TakeEntered();
  parts.queue.Admit();
  parts.queue.Admit();
  const auto second = parts.queue.running()[1];
  parts.queue.PutBack(*second);
  EXPECT_EQ(parts.queue.Next(), nullptr);
  const auto other = Of(parts, "b", 1);
  ASSERT_TRUE(parts.queue.Enter(other).ok());
  parts.queue.TakeEntered();
  EXPECT_EQ(parts.queue.Next(), other.get());
}

TEST(RunQueueTest, QueuedTokensAreATenantsLimit) {
  Parts parts;
  TenantPolicies policies;
  policies["a"].limits[static_cast<size_t>(TenantLimit::kQueuedTokens)] = 100;
  parts.tenants.SetPolicies(policies);
  EXPECT_EQ(Flood(parts, "a", 30), 3);
  const absl::Status refused = parts.queue.Enter(Of(parts, "a", 30));
  EXPECT_EQ(ReasonOf(refused).id, Reason::kTenantQueuedTokens);
  // Refused by itself it holds nothing.
  EXPECT_TRUE(parts.queue.Enter(Of(parts, "a", 10)).ok());
  parts.queue.TakeEntered();
  parts.queue.Admit();
  EXPECT_TRUE(parts.queue.Enter(Of(parts, "a", 30)).ok());
  EXPECT_EQ(parts.tenants.uses().at(0).used, 100);
  // One that waits and ends gives back as well.
  parts.finisher.Fail(*parts.queue.waiting()[0], absl::CancelledError(""));
  EXPECT_EQ(parts.tenants.uses().at(0).used, 70);
}

}  // namespace
}  // namespace xcache::testing
