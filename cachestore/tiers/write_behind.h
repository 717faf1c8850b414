// Pages on their way to a tier below host memory: a queue, and a thread that
// writes them there behind the answer.
#ifndef XCACHE_CACHESTORE_TIERS_WRITE_BEHIND_H_
#define XCACHE_CACHESTORE_TIERS_WRITE_BEHIND_H_

#include <cstdint>
#include <list>
#include <span>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "cachestore/page_store.h"
#include "engine/base/mutex.h"

namespace xcache {

class WriteBehind {
 public:
  // At most `queue_bytes` of pages wait; where the queue is full whoever puts a
  // page writes it. `store` must outlive this.
  WriteBehind(PageStore& store, int64_t queue_bytes);
  // Writes what waits.
  ~WriteBehind();

  void Put(const PageRef& page);
  // Writes a page in this thread. What the tier refuses it counts.
  void Write(const PageRef& page);
  // Writes those of the pages that wait, in this thread; returns when each is
  // written or refused.
  void WriteOut(std::span<const PageKey> keys);
  // The same of every page that was put before.
  void Flush();
  // A page that waits is not written; one that is being written, is by then.
  void Forget(const PageKey& key);

  // Sets what waits.
  void AddStats(PageStoreStats* stats) const;

 private:
  using Queue = std::list<PageRef>;

  void WriterLoop();
  // Takes a page out of the queue, to be written; Write() then writes it.
  PageRef TakeLocked(Queue::iterator it) XC_REQUIRES(mu_);

  PageStore& store_;
  const int64_t queue_bytes_limit_;

  mutable Mutex mu_;
  CondVar changed_;
  Queue queue_ XC_GUARDED_BY(mu_);
  int64_t queued_bytes_ XC_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<PageKey, Queue::iterator, DigestHash> queued_
      XC_GUARDED_BY(mu_);
  // Taken out of the queue and not yet written.
  absl::flat_hash_set<PageKey, DigestHash> writing_ XC_GUARDED_BY(mu_);
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::thread writer_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_WRITE_BEHIND_H_
