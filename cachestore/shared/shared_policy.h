// What a turn does while the shared store does not answer.
#ifndef XCACHE_CACHESTORE_SHARED_SHARED_POLICY_H_
#define XCACHE_CACHESTORE_SHARED_SHARED_POLICY_H_

namespace xcache {

enum class SharedPolicy {
  kStrict,  // it is refused: what is acknowledged is in the shared store
  kPrefer,  // it goes on with this machine's store, and is pushed later
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_SHARED_POLICY_H_
