#include "server/frontend/worker_pool.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

namespace xcache {
namespace {

// So that there is room for another tenant (RunQueue does the same).
constexpr size_t kPart = 7;

}  // namespace

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

bool WorkerPool::Submit(std::function<void()> task, std::string_view tenant) {
  {
    MutexLock lock(mu_);
    auto line =
        std::find_if(lines_.begin(), lines_.end(),
                     [&](const Line& other) { return other.first == tenant; });
    const size_t mine = line == lines_.end() ? 0 : line->second.size();
    if (num_queued_ >= max_queued_ ||
        mine >= kPart * (max_queued_ - num_queued_)) {
      return false;
    }
    if (line == lines_.end()) {
      line = lines_.emplace(lines_.end(), std::string(tenant),
                            std::deque<std::function<void()>>());
    }
    line->second.push_back(std::move(task));
    ++num_queued_;
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
      while (lines_.empty() && !stop_) changed_.Wait(mu_);
      if (lines_.empty()) return;
      Line line = std::move(lines_.front());
      lines_.pop_front();
      task = std::move(line.second.front());
      line.second.pop_front();
      --num_queued_;
      if (!line.second.empty()) lines_.push_back(std::move(line));
    }
    task();
  }
}

}  // namespace xcache
