#include "server/frontend/worker_pool.h"

#include <sys/resource.h>

#include <utility>

namespace xcache {

WorkerPool::WorkerPool(int num_threads, size_t max_queued, int nice)
    : max_queued_(max_queued) {
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this, nice] { Run(nice); });
  }
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::Submit(std::function<void()> task) {
  {
    MutexLock lock(mu_);
    if (queue_.size() >= max_queued_) return false;
    queue_.push_back(std::move(task));
  }
  changed_.Signal();
  return true;
}

void WorkerPool::Run(int nice) {
  // On Linux it is the calling thread's alone.
  if (nice > 0) (void)setpriority(PRIO_PROCESS, 0, nice);
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stop_) changed_.Wait(mu_);
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace xcache
