#include "engine/base/thread_pool.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace xcache {
namespace {

// How long a thread polls before it sleeps in the kernel. A forward pass opens
// its next loop within microseconds; a server without requests must not burn
// its cores.
constexpr std::chrono::microseconds kSpin{100};

void CpuRelax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// The state of a loop: its number, a bit that says that no worker may enter any
// more, and how many are in it.
constexpr uint32_t kWorkers = (1u << 11) - 1;
constexpr uint32_t kClosed = 1u << 11;
constexpr uint32_t kNextLoop = 1u << 12;

// Returns the first value that is as wanted; polls first.
template <typename Wanted>
uint32_t Await(const std::atomic<uint32_t>& value, const Wanted& wanted) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      const uint32_t now = value.load(std::memory_order_acquire);
      if (wanted(now)) return now;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < until);
  for (;;) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (wanted(now)) return now;
    value.wait(now, std::memory_order_acquire);
  }
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : state_(kClosed) {
  for (int i = 1; i < std::min<int>(num_threads, kWorkers); ++i) {
    workers_.emplace_back([this, i] { WorkerLoop(i); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  state_.fetch_add(kNextLoop, std::memory_order_release);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Drain(int thread) {
  for (;;) {
    const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= num_tasks_) return;
    fn_(context_, task, thread);
  }
}

void ThreadPool::Run(int64_t num_tasks, RawFn fn, const void* context) {
  fn_ = fn;
  context_ = context;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  // It is closed, and nobody is in it: the next one, open.
  state_.fetch_add(kNextLoop - kClosed, std::memory_order_release);
  state_.notify_all();
  Drain(0);
  state_.fetch_or(kClosed, std::memory_order_relaxed);
  Await(state_, [](uint32_t now) { return (now & kWorkers) == 0; });
}

void ThreadPool::WorkerLoop(int thread) {
  // A loop that opened and closed while this one did not run is missed.
  for (uint32_t seen = kClosed;;) {
    uint32_t now = Await(state_, [&](uint32_t value) {
      return value / kNextLoop != seen / kNextLoop;
    });
    seen = now;
    if (stop_.load(std::memory_order_relaxed)) return;
    bool entered = false;
    while (!entered && (now & kClosed) == 0) {
      entered = state_.compare_exchange_weak(now, now + 1,
                                             std::memory_order_acquire);
      seen = now;
    }
    if (!entered) continue;
    Drain(thread);
    const uint32_t left = state_.fetch_sub(1, std::memory_order_release) - 1;
    if ((left & kClosed) != 0 && (left & kWorkers) == 0) state_.notify_all();
  }
}

}  // namespace xcache
