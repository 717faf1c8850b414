#include "engine/base/thread_pool.h"

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

// Waits until `value` is no longer `old`; polls first.
template <typename T>
void AwaitChange(const std::atomic<T>& value, T old) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < until);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) {
    workers_.emplace_back([this, i] { WorkerLoop(i); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
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
  running_workers_.store(static_cast<int>(workers_.size()),
                         std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  Drain(0);
  for (;;) {
    const int running = running_workers_.load(std::memory_order_acquire);
    if (running == 0) return;
    AwaitChange(running_workers_, running);
  }
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    AwaitChange(generation_, seen);
    // Every worker takes part in every loop, so none is ever skipped and the
    // generation grows by one at a time.
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    Drain(thread);
    if (running_workers_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      running_workers_.notify_all();
    }
  }
}

}  // namespace xcache
