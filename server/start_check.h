// What a start with these settings would meet (`xcache-server --check-config`):
// files, folders, addresses and limits are looked at, nothing is started,
// locked or written, and of the model no more is read than its description.
// What takes a start itself to find (weights, profiles, a GPU, whether a port
// is free, what is in the store) it does not say.
#ifndef XCACHE_SERVER_START_CHECK_H_
#define XCACHE_SERVER_START_CHECK_H_

#include <string>
#include <vector>

#include "server/config.h"

namespace xcache {

// A line each.
struct StartCheck {
  std::vector<std::string> notes;     // what is there
  std::vector<std::string> warnings;  // it would start, but
  std::vector<std::string> faults;    // it would not start
};

StartCheck CheckStart(const Config& config);

}  // namespace xcache

#endif  // XCACHE_SERVER_START_CHECK_H_
