// A pool of threads for data-parallel loops with low latency: the forward pass
// runs some hundred of them for each decoded token. Not a task queue.
#ifndef XCACHE_ENGINE_BASE_THREAD_POOL_H_
#define XCACHE_ENGINE_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace xcache {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the calling thread: num_threads - 1 are started.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(task, thread) once for each task in [0, num_tasks), in no given
  // order, `thread` in [0, num_threads()). Returns when all are done; what they
  // wrote is visible to the caller. Tasks are handed out one by one, so uneven
  // ones balance, and a worker that the system does not let run is not waited
  // for, unless it has a task in hand. Call from one thread at a time; must not
  // be nested. `fn` must not throw.
  template <typename Fn>
  void ParallelFor(int64_t num_tasks, const Fn& fn) {
    static_assert(std::is_invocable_v<const Fn&, int64_t, int>);
    if (num_tasks <= 0) return;
    if (num_tasks == 1 || workers_.empty()) {
      for (int64_t i = 0; i < num_tasks; ++i) fn(i, 0);
      return;
    }
    Run(num_tasks,
        [](const void* context, int64_t task, int thread) {
          (*static_cast<const Fn*>(context))(task, thread);
        },
        &fn);
  }

 private:
  using RawFn = void (*)(const void* context, int64_t task, int thread);

  void Run(int64_t num_tasks, RawFn fn, const void* context);
  void WorkerLoop(int thread);
  void Drain(int thread);

  // The loop at hand. Written by Run while no worker is in it.
  RawFn fn_ = nullptr;
  const void* context_ = nullptr;
  int64_t num_tasks_ = 0;

  alignas(64) std::atomic<int64_t> next_task_{0};
  // Which loop it is, whether it is closed, and how many workers are in it.
  alignas(64) std::atomic<uint32_t> state_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_THREAD_POOL_H_
