// Waits for what happens on other threads.
#ifndef XCACHE_TESTS_UNIT_SERVER_GRPC_EVENTUALLY_H_
#define XCACHE_TESTS_UNIT_SERVER_GRPC_EVENTUALLY_H_

#include <chrono>

#include "tests/support/wait_until.h"

namespace xcache::testing {

inline constexpr std::chrono::milliseconds kPatience(20'000);

// Waits until `done`; false where it never comes true.
template <typename Done>
bool Eventually(const Done& done) {
  return WaitUntil(done, kPatience);
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_GRPC_EVENTUALLY_H_
