// Looks at every open stream now and then, so that one whose client has stopped
// reading is noticed also when nothing else happens on it.
#ifndef XCACHE_SERVER_FRONTEND_STREAM_WATCHDOG_H_
#define XCACHE_SERVER_FRONTEND_STREAM_WATCHDOG_H_

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace xcache {

class WatchedStream {
 public:
  virtual ~WatchedStream() = default;
  // Called from the watchdog's thread; must not block.
  virtual void Tick(std::chrono::steady_clock::time_point now) = 0;
};

// Thread-safe.
class StreamWatchdog {
 public:
  explicit StreamWatchdog(std::chrono::milliseconds interval);
  ~StreamWatchdog();
  StreamWatchdog(const StreamWatchdog&) = delete;
  StreamWatchdog& operator=(const StreamWatchdog&) = delete;

  // Watches the stream for as long as somebody else holds it.
  void Add(std::weak_ptr<WatchedStream> stream) XC_EXCLUDES(mu_);

 private:
  void Run() XC_EXCLUDES(mu_);

  const std::chrono::milliseconds interval_;
  Mutex mu_;
  CondVar stopping_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::vector<std::weak_ptr<WatchedStream>> streams_ XC_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_STREAM_WATCHDOG_H_
