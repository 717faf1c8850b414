#include "server/frontend/stream_watchdog.h"

#include <utility>

namespace xcache {

StreamWatchdog::StreamWatchdog(std::chrono::milliseconds interval)
    : interval_(interval), thread_([this] { Run(); }) {}

StreamWatchdog::~StreamWatchdog() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  stopping_.SignalAll();
  thread_.join();
}

void StreamWatchdog::Add(std::weak_ptr<WatchedStream> stream) {
  MutexLock lock(mu_);
  streams_.push_back(std::move(stream));
}

void StreamWatchdog::Run() {
  while (true) {
    std::vector<std::shared_ptr<WatchedStream>> open;
    {
      MutexLock lock(mu_);
      if (!stop_) stopping_.WaitFor(mu_, interval_);
      if (stop_) return;
      std::erase_if(streams_, [&](const std::weak_ptr<WatchedStream>& weak) {
        auto stream = weak.lock();
        if (stream == nullptr) return true;
        open.push_back(std::move(stream));
        return false;
      });
    }
    const auto now = std::chrono::steady_clock::now();
    for (const auto& stream : open) stream->Tick(now);
  }
}

}  // namespace xcache
