// How the C library's allocator keeps the promise that --memory-bytes is about
// resident memory (rule R5).
//
// glibc's malloc keeps what it is given back: in up to eight arenas a CPU, and
// from heaps where anything above may still be in use. Pages and messages are
// allocated on one thread and freed on another all the time, and a flood's
// calls lie between pages that stay, which leaves hundreds of MiB of holes.
#ifndef XCACHE_SERVER_ALLOCATOR_H_
#define XCACHE_SERVER_ALLOCATOR_H_

#include <chrono>
#include <cstdint>
#include <thread>

#include "engine/base/mutex.h"

namespace xcache {

// Large pieces get mappings of their own, which go when they are freed, and
// small ones share few arenas. REQUIRES: the process has one thread.
void BoundAllocator();

// Gives the holes in the heaps back to the system, whenever the process has
// grown since the last time; and, as what it grew by may be free only later, a
// few times more.
class HeapTrimmer {
 public:
  // Looks every `interval` whether that is by more than `slack_bytes`: the look
  // is a read of /proc, giving back a walk over what is free (1 to 6 ms where
  // that is 60 MiB). Once more after two looks, four and so on, up to 128.
  HeapTrimmer(std::chrono::milliseconds interval, int64_t slack_bytes);
  ~HeapTrimmer();
  HeapTrimmer(const HeapTrimmer&) = delete;
  HeapTrimmer& operator=(const HeapTrimmer&) = delete;

 private:
  void Loop();

  const std::chrono::milliseconds interval_;
  const int64_t slack_bytes_;

  Mutex mu_;
  CondVar stopping_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses the rest
};

// Of this process; 0 where the system does not say.
int64_t ResidentBytes();

}  // namespace xcache

#endif  // XCACHE_SERVER_ALLOCATOR_H_
