// Waits for what happens on other threads.
#ifndef XCACHE_TESTS_UNIT_SERVER_GRPC_EVENTUALLY_H_
#define XCACHE_TESTS_UNIT_SERVER_GRPC_EVENTUALLY_H_

#include <chrono>
#include <thread>

namespace xcache::testing {

inline constexpr std::chrono::milliseconds kPatience(20'000);

// Waits until `done`; false where it never comes true.
template <typename Done>
bool Eventually(Done done) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_GRPC_EVENTUALLY_H_
