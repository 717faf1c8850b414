// A few threads for what may wait for the disk or take long (session records,
// tokenizing a book): gRPC's own threads must not, they write all the streams.
#ifndef XCACHE_SERVER_FRONTEND_WORKER_POOL_H_
#define XCACHE_SERVER_FRONTEND_WORKER_POOL_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class WorkerPool {
 public:
  // `nice`, 0 to 19: how far its threads give way to others where there are too
  // few cores.
  WorkerPool(int num_threads, size_t max_queued, int nice = 0);
  // Runs what is queued, then ends.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Queues `task` for `tenant`: tenants take turns, and each one's tasks are
  // first come first served. False: the queue is full, or a tenant has seven
  // times as much of it as it leaves free; `task` will not run.
  [[nodiscard]] bool Submit(std::function<void()> task,
                            std::string_view tenant = {}) XC_EXCLUDES(mu_);

 private:
  void Run(int nice) XC_EXCLUDES(mu_);

  const size_t max_queued_;
  Mutex mu_;
  CondVar changed_;
  // Of tenants that have some; the first one's turn is next.
  using Line = std::pair<std::string, std::deque<std::function<void()>>>;
  std::deque<Line> lines_ XC_GUARDED_BY(mu_);
  size_t num_queued_ XC_GUARDED_BY(mu_) = 0;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_WORKER_POOL_H_
