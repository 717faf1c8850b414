// A small annotated wrapper over std::mutex, so that clang's -Wthread-safety
// checks what each lock guards and ThreadSanitizer sees every lock.
#ifndef XCACHE_ENGINE_BASE_MUTEX_H_
#define XCACHE_ENGINE_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define XC_TSA_(x) __attribute__((x))
#else
#define XC_TSA_(x)
#endif

#define XC_GUARDED_BY(m) XC_TSA_(guarded_by(m))
#define XC_PT_GUARDED_BY(m) XC_TSA_(pt_guarded_by(m))
#define XC_REQUIRES(...) XC_TSA_(requires_capability(__VA_ARGS__))
#define XC_EXCLUDES(...) XC_TSA_(locks_excluded(__VA_ARGS__))
#define XC_NO_THREAD_SAFETY_ANALYSIS XC_TSA_(no_thread_safety_analysis)

namespace xcache {

class XC_TSA_(capability("mutex")) Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() XC_TSA_(acquire_capability()) { mu_.lock(); }
  void Unlock() XC_TSA_(release_capability()) { mu_.unlock(); }
  bool TryLock() XC_TSA_(try_acquire_capability(true)) {
    return mu_.try_lock();
  }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class XC_TSA_(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mu) XC_TSA_(acquire_capability(mu)) : mu_(mu) {
    mu_.Lock();
  }
  ~MutexLock() XC_TSA_(release_capability()) { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// Waits spuriously wake: callers loop on their condition.
class CondVar {
 public:
  void Wait(Mutex& mu) XC_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // Returns false if `timeout` passed first.
  template <typename Rep, typename Period>
  bool WaitFor(Mutex& mu, std::chrono::duration<Rep, Period> timeout)
      XC_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    const bool woken = cv_.wait_for(lock, timeout) == std::cv_status::no_timeout;
    lock.release();
    return woken;
  }
  void Signal() { cv_.notify_one(); }
  void SignalAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_MUTEX_H_
