// Pages on their way to a tier below host memory: a queue, and threads that
// write them there behind the answer.
//
// A tier on this machine takes every page: where the queue is full whoever puts
// one writes it. One at the other end of a network holds up nobody: what does
// not fit, or cannot be written, is dropped, and its owner is told.
#ifndef XCACHE_CACHESTORE_TIERS_WRITE_BEHIND_H_
#define XCACHE_CACHESTORE_TIERS_WRITE_BEHIND_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <span>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "cachestore/page_store.h"
#include "engine/base/mutex.h"

namespace xcache {

struct WriteBehindOptions {
  int64_t queue_bytes = 0;  // of pages that wait, at most
  int num_writers = 1;
  bool is_remote = false;
  // Of a remote tier: how long the end waits for what is left. Writes have
  // deadlines of their own.
  std::chrono::milliseconds patience{2000};
  // Of a remote tier: told of each page that was not written, without any lock,
  // on the thread that puts it or a writer's.
  std::function<void(const PageKey&)> dropped{};
};

class WriteBehind {
 public:
  // `store` must outlive this.
  WriteBehind(PageStore& store, WriteBehindOptions options);
  // Writes what waits; to a remote tier, what it takes in time.
  ~WriteBehind();

  // Nothing where it waits already.
  void Put(const PageRef& page);
  // Writes a page in this thread. What the tier refuses it counts.
  // REQUIRES: the tier is not remote.
  void Write(const PageRef& page);
  // Writes those of the pages that wait, in this thread; returns when each is
  // written or refused. Nothing for a remote tier.
  void WriteOut(std::span<const PageKey> keys);
  // The same of every page that was put before. Of a remote tier: waits until
  // they are written or dropped, for `patience` at most.
  void Flush();
  // A page that waits is not written; one that is being written, is by then,
  // but for a remote tier's.
  void Forget(const PageKey& key);

  // Whether at least half of the queue is free.
  bool HasRoom() const;
  // Sets what waits, and adds what was dropped.
  void AddStats(PageStoreStats* stats) const;

 private:
  using Queue = std::list<PageRef>;

  void WriterLoop();
  // Takes a page out of the queue, to be written; WriteTaken() then writes it.
  PageRef TakeLocked(Queue::iterator it) XC_REQUIRES(mu_);
  void WriteTaken(PageRef page);
  void Drop(const PageKey& key);

  PageStore& store_;
  const WriteBehindOptions options_;

  mutable Mutex mu_;
  CondVar changed_;
  Queue queue_ XC_GUARDED_BY(mu_);
  int64_t queued_bytes_ XC_GUARDED_BY(mu_) = 0;
  int64_t num_dropped_ XC_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<PageKey, Queue::iterator, DigestHash> queued_
      XC_GUARDED_BY(mu_);
  // Taken out of the queue and not yet written.
  absl::flat_hash_set<PageKey, DigestHash> writing_ XC_GUARDED_BY(mu_);
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::vector<std::thread> writers_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TIERS_WRITE_BEHIND_H_
