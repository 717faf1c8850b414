// The service's own threads, without gRPC: under ThreadSanitizer too.
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "server/frontend/auth.h"
#include "server/frontend/readiness_gate.h"
#include "server/frontend/stream_watchdog.h"
#include "server/frontend/worker_pool.h"
#include "server/metrics/metrics.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

TEST(WorkerPoolTest, RunsEverythingThatItTook) {
  std::atomic<int> ran{0};
  int taken = 0;
  {
    WorkerPool pool(3, 1'000'000);
    for (int i = 0; i < 1000; ++i) {
      if (pool.Submit([&] { ++ran; })) ++taken;
    }
  }
  EXPECT_EQ(taken, 1000);
  EXPECT_EQ(ran, 1000);
}

TEST(WorkerPoolTest, RefusesWhenItsQueueIsFull) {
  std::atomic<bool> go{false};
  std::atomic<int> ran{0};
  int taken = 0;
  {
    WorkerPool pool(1, 2);
    ASSERT_TRUE(pool.Submit([&] {
      while (!go) std::this_thread::yield();
      ++ran;
    }));
    // The first may still be in the queue, or be running already.
    for (int i = 0; i < 10; ++i) {
      if (pool.Submit([&] { ++ran; })) ++taken;
    }
    EXPECT_GE(taken, 1);
    EXPECT_LE(taken, 2);
    go = true;
  }
  EXPECT_EQ(ran, taken + 1);
}

TEST(WorkerPoolTest, TenantsTakeTurns) {
  Mutex mu;
  std::string order;
  std::atomic<bool> go{false};
  {
    WorkerPool pool(1, 1000);
    ASSERT_TRUE(pool.Submit([&] {
      while (!go) std::this_thread::yield();
    }));
    const auto submit = [&](const std::string& tenant) {
      return pool.Submit(
          [&, tenant] {
            MutexLock lock(mu);
            order += tenant;
          },
          tenant);
    };
    for (int i = 0; i < 6; ++i) ASSERT_TRUE(submit("a"));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(submit("b"));
    ASSERT_TRUE(submit("c"));
    go = true;
  }
  EXPECT_EQ(order, "abcabaaaa");
}

TEST(WorkerPoolTest, NoTenantFillsTheQueue) {
  std::atomic<bool> go{false}, began{false};
  WorkerPool pool(1, 64);
  ASSERT_TRUE(pool.Submit([&] {
    began = true;
    while (!go) std::this_thread::yield();
  }));
  while (!began) std::this_thread::yield();
  int flood = 0;
  while (pool.Submit([] {}, "flood")) ++flood;
  EXPECT_EQ(flood, 56);
  for (int i = 0; i < 7; ++i) EXPECT_TRUE(pool.Submit([] {}, "good")) << i;
  go = true;
}

class CountingStream final : public WatchedStream {
 public:
  void Tick(steady_clock::time_point) override { ++ticks_; }
  int ticks() const { return ticks_; }

 private:
  std::atomic<int> ticks_{0};
};

TEST(StreamWatchdogTest, TicksStreamsForAsLongAsTheyLive) {
  StreamWatchdog watchdog(milliseconds(1));
  auto stream = std::make_shared<CountingStream>();
  watchdog.Add(stream);
  const auto end = steady_clock::now() + std::chrono::seconds(20);
  while (stream->ticks() < 3 && steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_GE(stream->ticks(), 3);
  const std::weak_ptr<CountingStream> weak = stream;
  stream.reset();
  while (!weak.expired() && steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_TRUE(weak.expired());
}

TEST(StreamWatchdogTest, EndsAtOnce) {
  const auto start = steady_clock::now();
  { StreamWatchdog watchdog(std::chrono::hours(1)); }
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(ReadinessGateTest, OpensOnceAndClosesForGood) {
  ReadinessGate gate;
  gate.SetProgress("reading", 2.0);
  EXPECT_EQ(gate.progress().percent, 100);
  EXPECT_TRUE(absl::IsUnavailable(gate.Enter().status()));
  // Never looked into.
  auto* core = reinterpret_cast<ServerCore*>(&gate);
  gate.Open(core);
  ASSERT_TRUE(gate.Enter().ok());
  EXPECT_EQ(*gate.Enter(), core);
  EXPECT_FALSE(gate.progress().loading);
  gate.Close();
  gate.Open(core);
  EXPECT_FALSE(gate.is_open());
  EXPECT_TRUE(absl::IsUnavailable(gate.Enter().status()));
}

TEST(MetricsThreadsTest, CountsAndScrapesAtOnce) {
  Metrics metrics;
  std::atomic<bool> stop{false};
  std::thread scraper([&] {
    while (!stop) {
      const auto handle = metrics.AddSource([](SampleWriter& writer) {
        writer.Set(Metric::kPages, 1, {"host"});
      });
      metrics.Collect();
    }
  });
  std::vector<std::thread> counters;
  for (int t = 0; t < 3; ++t) {
    counters.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        metrics.CountRequest(Method::kChat, absl::StatusCode::kOk, 0.01);
        metrics.Add(CoreCounter::kSteps, 1);
        metrics.Observe(CoreHistogram::kRematBlock, 0.001);
      }
    });
  }
  for (std::thread& thread : counters) thread.join();
  stop = true;
  scraper.join();
  EXPECT_EQ(metrics.requests(Method::kChat, absl::StatusCode::kOk), 6000u);
}

}  // namespace
}  // namespace xcache
