// A few threads that run posted functions in order of arrival: page loads and
// commits, which wait for the disk so that the scheduler need not.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_WORK_QUEUE_H_
#define XCACHE_SERVER_CORE_SCHEDULER_WORK_QUEUE_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace xcache {

class WorkQueue {
 public:
  explicit WorkQueue(int num_threads);
  ~WorkQueue() { Stop(); }
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // REQUIRES: not stopped.
  void Post(std::function<void()> work) XC_EXCLUDES(mu_);
  // Runs what was posted, then ends the threads. Idempotent.
  void Stop() XC_EXCLUDES(mu_);

 private:
  void Loop();

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> work_ XC_GUARDED_BY(mu_);
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_WORK_QUEUE_H_
