// The sequences that sessions leave behind after a turn, so that the next turn
// goes on directly from them. Belongs to the scheduler's thread, except where a
// method says otherwise.
#ifndef XCACHE_SERVER_CORE_CACHE_IDLE_SETS_H_
#define XCACHE_SERVER_CORE_CACHE_IDLE_SETS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/core/cache/blocks.h"
#include "server/core/cache/codec_table.h"
#include "server/core/core_metrics.h"
#include "server/core/request.h"

namespace xcache {

// A sequence, what holds its blocks, and its own memory. `sequence` may be null
// while only the blocks are known: it is made when it is computed with.
struct LiveSequence {
  CodecRef codec;  // the sequence's
  std::unique_ptr<Sequence> sequence;
  std::vector<BlockHold> holds;  // one for each of its blocks
  MemoryReservation memory;      // of the sequence without its blocks
  RematPolicy remat = RematPolicy::kResume;  // the sequence's

  int64_t num_rows() const;
  // Forgets tokens from `num_tokens` on, and maybe the ones before up to the
  // block's start.
  void Truncate(int64_t num_tokens, uint64_t tick);
  // Gives everything back.
  void Drop(uint64_t tick);
};

class IdleSets {
 public:
  IdleSets(BlockCache& cache, CoreMetrics& metrics)
      : cache_(cache), metrics_(metrics) {}

  void Put(const SessionKey& key, LiveSequence live);
  std::optional<LiveSequence> Take(const SessionKey& key);
  void Drop(const SessionKey& key);
  void DropAll();
  // Drops the one used longest ago; returns the bytes that its sequence gave
  // back (its blocks stay in the cache, held by nobody). 0: there is none.
  int64_t DropOldest();
  // The largest value: there is none.
  uint64_t OldestTick() const;

  // On any thread.
  bool Contains(const SessionKey& key) const;
  size_t size() const;

 private:
  struct Idle {
    LiveSequence live;
    uint64_t tick = 0;
  };

  BlockCache& cache_;
  CoreMetrics& metrics_;
  mutable Mutex mu_;
  std::map<SessionKey, Idle> sets_ XC_GUARDED_BY(mu_);
  std::map<uint64_t, SessionKey> by_tick_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CACHE_IDLE_SETS_H_
