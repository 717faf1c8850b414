#include "server/allocator.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace xcache {

void BoundAllocator() {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 4);
  // Fixed: by default it grows with what was freed, up to 32 MiB.
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
  mallopt(M_MMAP_MAX, 1 << 14);  // of the 65,530 that Linux allows
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
}

HeapTrimmer::HeapTrimmer(std::chrono::milliseconds interval,
                         int64_t slack_bytes)
    : interval_(interval),
      slack_bytes_(slack_bytes),
      thread_([this] { Loop(); }) {}

HeapTrimmer::~HeapTrimmer() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    stopping_.SignalAll();
  }
  thread_.join();
}

void HeapTrimmer::Loop() {
  constexpr int kLastPause = 128;
  int64_t least = ResidentBytes();  // since the last time
  int looks = 0;
  int pause = 2 * kLastPause;  // looks from one time to the next
  while (true) {
    {
      MutexLock lock(mu_);
      if (!stop_) stopping_.WaitFor(mu_, interval_);
      if (stop_) return;
    }
    const int64_t now = ResidentBytes();
    const bool has_grown = now > least + slack_bytes_;
    least = std::min(least, now);
    if (has_grown) pause = 1;
    if (pause > kLastPause || (!has_grown && ++looks < pause)) continue;
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    least = ResidentBytes();
    looks = 0;
    pause *= 2;
  }
}

int64_t ResidentBytes() {
  std::ifstream in("/proc/self/statm");
  int64_t total = 0, resident = 0;
  in >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace xcache
