// How fast this machine does what: running averages that decide between
// restoring and recomputing (rule R6) and that metrics show. Thread-safe.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_RATES_H_
#define XCACHE_SERVER_CORE_SCHEDULER_RATES_H_

#include <cstdint>

#include "engine/base/mutex.h"

namespace xcache {

class Rates {
 public:
  struct Values {  // seconds; 0: not measured yet
    double prefill_token = 0;
    double decode_token = 0;  // of steps that only decode
    double remat_block = 0;
    double load_block_host = 0;  // a page from host memory
    double load_block_disk = 0;  // and from disk, or any tier of this machine
    // A page from the shared tier: until the first one comes, and each one
    // after it while many are under way.
    double fetch_first = 0;
    double fetch_block = 0;
    double service = 0;  // one request, admitted to finished
    double queue = 0;    // one request, submitted to admitted
  };

  void AddPrefill(int64_t num_tokens, double seconds);
  void AddDecode(int64_t num_tokens, double seconds);
  void AddRemat(int64_t num_blocks, double seconds);
  // Pages that were read one after another, of which these tiers had so many.
  void AddLoad(int64_t from_host, int64_t from_disk, double seconds);
  // Pages that were fetched together: when the first and when the last came.
  void AddFetch(int64_t num_blocks, double first_seconds, double last_seconds);
  void AddService(double seconds);
  void AddQueue(double seconds);
  Values values() const;

  // Whether it is cheaper to restore blocks, of which these tiers have so many,
  // than to compute their tokens. Says yes while either is unknown, and now and
  // then (every 32nd time) against the averages, which would otherwise never be
  // measured again.
  bool PreferRestore(int64_t from_host, int64_t from_disk);
  // The same of blocks that are to be fetched from the shared tier.
  bool PreferFetch(int64_t num_blocks);

 private:
  bool Prefer(double load, double num_blocks, uint64_t* num_refused)
      XC_REQUIRES(mu_);

  mutable Mutex mu_;
  Values values_ XC_GUARDED_BY(mu_);
  uint64_t num_recomputes_ XC_GUARDED_BY(mu_) = 0;
  uint64_t num_not_fetched_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_RATES_H_
