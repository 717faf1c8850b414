// Opens the object store of the shared tier as the operator names it: once for
// pages and once for manifests, so that a turn's manifest never waits behind
// pages, in a queue or for the limit of bytes a second.
#ifndef XCACHE_SERVER_SHARED_STORES_H_
#define XCACHE_SERVER_SHARED_STORES_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/shared/object_store.h"
#include "server/shared_config.h"

namespace xcache {

struct SharedStores {
  std::shared_ptr<ObjectStore> pages;  // null: no shared tier
  std::shared_ptr<ObjectStore> sessions;
};

// Asks nothing of the store itself: it may come later than we do.
// PERMISSION_DENIED, INVALID_ARGUMENT: no credentials, or bad ones; the message
// says where they were looked for.
absl::StatusOr<SharedStores> OpenSharedStores(const SharedConfig& config);

// Whether a file of credentials is one: what reading it says.
absl::Status CheckSharedCredentials(const std::string& path);

}  // namespace xcache

#endif  // XCACHE_SERVER_SHARED_STORES_H_
