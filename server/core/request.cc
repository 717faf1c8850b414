// Cancellation.
#include "server/core/request.h"

namespace xcache {

void Cancellation::Cancel() {
  MutexLock lock(mu_);
  if (cancelled_) return;
  cancelled_ = true;
  if (waker_) waker_();
}

bool Cancellation::cancelled() const {
  MutexLock lock(mu_);
  return cancelled_;
}

void Cancellation::SetWaker(std::function<void()> waker) {
  MutexLock lock(mu_);
  waker_ = std::move(waker);
  if (cancelled_ && waker_) waker_();
}

}  // namespace xcache
