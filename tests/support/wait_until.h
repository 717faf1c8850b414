// Waits for what happens on other threads.
#ifndef XCACHE_TESTS_SUPPORT_WAIT_UNTIL_H_
#define XCACHE_TESTS_SUPPORT_WAIT_UNTIL_H_

#include <chrono>
#include <thread>

namespace xcache::testing {

// Until `done`; false where it does not come true in that time.
template <typename Done>
bool WaitUntil(const Done& done, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_SUPPORT_WAIT_UNTIL_H_
