// Where a change of a session is when its call is answered (rule R4).
#ifndef XCACHE_CACHESTORE_DURABILITY_H_
#define XCACHE_CACHESTORE_DURABILITY_H_

#include <string_view>

namespace xcache {

enum class Durability {
  kNone,    // nothing was to be kept: no session, or the call failed
  kMemory,  // in this process alone; on disk as soon as the disk takes it
  kLocal,   // on this machine's disk, synced
  kShared,  // in the shared store: it outlives the machine
};

constexpr std::string_view DurabilityName(Durability durability) {
  switch (durability) {
    case Durability::kMemory:
      return "memory";
    case Durability::kLocal:
      return "local";
    case Durability::kShared:
      return "shared";
    case Durability::kNone:
      break;
  }
  return "none";
}

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_DURABILITY_H_
