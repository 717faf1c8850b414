// A page store at the other end of a network: asked without waiting, since an
// answer may take seconds, or not come. What is thread-safe and what a fault is
// are as page_store.h says.
#ifndef XCACHE_CACHESTORE_REMOTE_PAGE_STORE_H_
#define XCACHE_CACHESTORE_REMOTE_PAGE_STORE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/page_store.h"

namespace xcache {

class RemotePageStore : public PageStore {
 public:
  // What came for a page, not looked at yet.
  struct Arrival {
    absl::Status status;
    std::string bytes;
    std::string version;  // of the object that they are
  };
  using Arrived = std::function<void(Arrival)>;

  // Asks for a page. `done` is called once, at once or later, in any thread,
  // also after this store is gone: it must be quick and must not block.
  virtual void Fetch(const PageKey& key, Arrived done) = 0;

  // Looks at what came: the page, whole and the right one, with its memory
  // reserved. What Fetch ended with; DATA_LOSS: damaged, which is counted;
  // RESOURCE_EXHAUSTED: no memory.
  virtual absl::StatusOr<PageRef> Accept(const PageKey& key,
                                         Arrival arrival) = 0;

  // Whether Put would send the page: it is not known to be there, or has been
  // there for so long that it is to be put again. Cheap.
  virtual bool Wants(const PageKey& key) const = 0;

  // Finds out whether the page is there and since when, for Wants, without
  // getting it. `done` is called once it is known, in any thread, and not where
  // it cannot be: quick, as that of Fetch.
  virtual void Look(const PageKey& key, std::function<void()> done) = 0;

  // False while it is known to be away, and calls fail at once.
  virtual bool IsReachable() const = 0;
  // From now on every Get and Put that waits, or comes, ends with CANCELLED.
  virtual void Cancel() = 0;
  // To be called about once a second: while it is away it is asked now and then
  // whether it is back. Does not wait for that.
  virtual void Housekeep() = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_REMOTE_PAGE_STORE_H_
