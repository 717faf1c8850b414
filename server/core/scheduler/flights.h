// Which running request makes which block: one maker for each, so that a prefix
// which several ask for at once is computed or restored once, and the others
// take it when it is there. Scheduler's thread only.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_FLIGHTS_H_
#define XCACHE_SERVER_CORE_SCHEDULER_FLIGHTS_H_

#include <algorithm>
#include <unordered_map>

#include "cachestore/page_key.h"
#include "server/core/scheduler/active_request.h"

namespace xcache {

class Flights {
 public:
  // Null: nobody makes it.
  const ActiveRequest* MakerOf(const PageKey& key) const {
    const auto it = makers_.find(key);
    return it == makers_.end() ? nullptr : it->second;
  }
  // `request` is to make the block, unless somebody does already.
  void Begin(ActiveRequest& request, const PageKey& key) {
    if (makers_.emplace(key, &request).second) request.flights.push_back(key);
  }
  // `request` has made the block, or will not.
  void Land(ActiveRequest& request, const PageKey& key) {
    const auto it =
        std::find(request.flights.begin(), request.flights.end(), key);
    if (it == request.flights.end()) return;
    request.flights.erase(it);
    makers_.erase(key);
  }
  void LandAll(ActiveRequest& request) {
    for (const PageKey& key : request.flights) makers_.erase(key);
    request.flights.clear();
  }

 private:
  std::unordered_map<PageKey, const ActiveRequest*, DigestHash> makers_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_FLIGHTS_H_
