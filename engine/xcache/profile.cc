#include "engine/xcache/profile.h"

namespace xcache {

std::string_view ProfileKindName(ProfileKind kind) {
  switch (kind) {
    case ProfileKind::kNone:
      return "none";
    case ProfileKind::kKvProjection:
      return "kv-projection";
    case ProfileKind::kGqaSvd:
      return "gqa-svd";
  }
  return "unknown";
}

}  // namespace xcache
