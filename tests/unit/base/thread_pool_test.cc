#include "engine/base/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnceOnAKnownThread) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (int64_t num_tasks : {0, 1, 2, 7, 100}) {
      std::vector<int> runs(static_cast<size_t>(num_tasks), 0);
      pool.ParallelFor(num_tasks, [&](int64_t task, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, num_threads);
        ++runs[static_cast<size_t>(task)];
      });
      for (int count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPoolTest, ManyShortLoopsSeeEachOthersWrites) {
  ThreadPool pool(4);
  std::vector<int64_t> now(16, 0), next(16, 0);
  for (int round = 0; round < 5000; ++round) {
    pool.ParallelFor(16, [&](int64_t task, int) {
      const auto i = static_cast<size_t>(task);
      next[i] = now[(i + 1) % 16] + 1;
    });
    now.swap(next);
  }
  for (int64_t value : now) EXPECT_EQ(value, 5000);
}

TEST(ThreadPoolTest, WakesAfterASleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::vector<int> runs(10, 0);
    pool.ParallelFor(10, [&](int64_t task, int) {
      ++runs[static_cast<size_t>(task)];
    });
    for (int count : runs) EXPECT_EQ(count, 1);
  }
}

std::atomic<bool> g_held{false}, g_release{false};

// Keeps the thread that gets the signal from running.
void Hold(int) {
  g_held = true;
  while (!g_release) {
  }
  g_held = false;
}

TEST(ThreadPoolTest, AWorkerThatDoesNotRunIsNotWaitedFor) {
  ThreadPool pool(2);
  std::atomic<bool> known{false};
  pthread_t worker{};
  // Both threads are needed for it to end.
  pool.ParallelFor(2, [&](int64_t, int thread) {
    if (thread == 1) {
      worker = pthread_self();
      known = true;
    }
    while (!known) {
    }
  });
  std::signal(SIGUSR1, &Hold);
  ASSERT_EQ(pthread_kill(worker, SIGUSR1), 0);
  while (!g_held) {
  }
  std::vector<int> threads(100, -1);
  pool.ParallelFor(100, [&](int64_t task, int thread) {
    threads[static_cast<size_t>(task)] = thread;
  });
  EXPECT_TRUE(g_held);
  EXPECT_EQ(threads, std::vector<int>(100, 0));
  g_release = true;
  // It takes part again.
  known = false;
  pool.ParallelFor(2, [&](int64_t, int thread) {
    if (thread == 1) known = true;
    while (!known) {
    }
  });
  std::signal(SIGUSR1, SIG_DFL);
}

}  // namespace
}  // namespace xcache
