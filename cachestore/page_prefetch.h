// The pages of one request on their way from a remote tier into host memory:
// asked for at the request's arrival, in parallel, and looked at by whoever
// plans what the request does next. Nobody waits in here.
#ifndef XCACHE_CACHESTORE_PAGE_PREFETCH_H_
#define XCACHE_CACHESTORE_PAGE_PREFETCH_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "cachestore/page_key.h"

namespace xcache {

struct PrefetchRequest {
  // The request's pages in order, from the first one on that is not here.
  std::vector<PageKey> keys;
  // So many of them, from the first one on, somebody says are there: they are
  // asked for all at once, within the limits. Of the others 1, then 2, 4, 8 ...
  // are, while all are found.
  size_t num_promised = 0;
  // Called when some page came or will not come, in a thread of the store's,
  // until the prefetch is gone: must be quick, and must not end it.
  std::function<void()> wake;
};

// Thread-safe. Pages that were asked for come all the same when it goes; those
// that were not are asked for no more. Must not outlive its store.
class PagePrefetch {
 public:
  enum class State {
    kComing,     // asked for, or to be
    kCame,       // it is in host memory, or was
    kNotComing,  // not there, or not to be had now; or not of this request
  };
  struct Timing {
    int64_t num_pages = 0;     // that came
    double first_seconds = 0;  // from the first question to the first page
    double last_seconds = 0;   // and to the last one
  };

  virtual ~PagePrefetch() = default;

  virtual State StateOf(const PageKey& key) const = 0;
  // The request has got as far as this key: those before it are not wanted.
  virtual void Reached(const PageKey& key) = 0;
  // Whether a page that is here came by this prefetch.
  virtual bool Brought(const PageKey& key) const = 0;
  // Whether the page was promised.
  virtual bool IsPromised(const PageKey& key) const = 0;
  virtual Timing timing() const = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_PAGE_PREFETCH_H_
