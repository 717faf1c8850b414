// Deletes what is older than it may be from one folder of an object store, one
// object after another: beside what the store is there for, and slowly.
#ifndef XCACHE_CACHESTORE_SHARED_PAGE_SWEEP_H_
#define XCACHE_CACHESTORE_SHARED_PAGE_SWEEP_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "cachestore/shared/object_store.h"

namespace xcache {

struct PageSweepOptions {
  std::string folder;     // a prefix of keys
  std::string clock_key;  // of the object by which the store tells its time
  int64_t now_ms = 0;     // Unix time that is believed
  std::chrono::milliseconds life{0};
  // The two clocks may differ by so much, and nothing is deleted where they do
  // by more: one of them is wrong (rule R11).
  std::chrono::milliseconds tolerance = std::chrono::minutes(10);
  std::chrono::milliseconds timeout{5000};  // of each call
};

// `deleted` is told of each key; `done`, once, of the end: OK, or the first
// error, with which it stops. All run in the store's thread, or at once; none
// is called after the store is gone. FAILED_PRECONDITION: the clocks.
void StartPageSweep(ObjectStore& store, PageSweepOptions options,
                    std::function<void(const std::string& key)> deleted,
                    std::function<void(absl::Status)> done);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_PAGE_SWEEP_H_
