// Worker threads by class of work, so that what is cheap never waits behind
// what is expensive (rule R10): each class has a queue and threads of its own,
// in which tenants take turns.
#ifndef XCACHE_SERVER_FRONTEND_WORK_CLASSES_H_
#define XCACHE_SERVER_FRONTEND_WORK_CLASSES_H_

#include <cstddef>
#include <functional>
#include <string_view>
#include <utility>

#include "server/frontend/worker_pool.h"

namespace xcache {

enum class WorkClass {
  kLookup,     // one record: what dashboards and clients poll
  kStore,      // many records, or waits for the disk: lists, deletes, flushes
  kText,       // renders and tokenizes a message or a page of text
  kLargeText,  // a book
};

// Requests of more bytes than this are kLargeText: 64 KiB are tokenized in a
// few milliseconds.
inline constexpr size_t kLargeTextBytes = size_t{64} << 10;

// Of a request of so many bytes that brings text.
inline WorkClass TextClassOf(size_t bytes) {
  return bytes > kLargeTextBytes ? WorkClass::kLargeText : WorkClass::kText;
}

// Thread-safe.
class WorkClasses {
 public:
  // Queues `task` with its class. False: that queue is full, for the tenant at
  // least, and `task` will not run.
  [[nodiscard]] bool Submit(WorkClass work, std::string_view tenant,
                            std::function<void()> task) {
    return PoolOf(work).Submit(std::move(task), tenant);
  }

 private:
  WorkerPool& PoolOf(WorkClass work) {
    switch (work) {
      case WorkClass::kLookup:
        return lookup_;
      case WorkClass::kStore:
        return store_;
      case WorkClass::kText:
        return text_;
      case WorkClass::kLargeText:
        return large_text_;
    }
    return store_;
  }

  WorkerPool lookup_{2, 1024};
  WorkerPool store_{2, 1024};
  WorkerPool text_{2, 1024};
  // One book at a time, and behind its neighbours, which are the forward pass's
  // threads.
  WorkerPool large_text_{1, 64, /*nice=*/15};
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_WORK_CLASSES_H_
