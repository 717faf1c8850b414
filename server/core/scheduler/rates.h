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
    double decode_token = 0;  // one row of a step that only decodes
    double remat_block = 0;
    double load_block = 0;
    double service = 0;  // one request, admitted to finished
    double queue = 0;    // one request, submitted to admitted
  };

  void AddPrefill(int64_t num_tokens, double seconds);
  void AddDecode(int64_t num_tokens, double seconds);
  void AddRemat(int64_t num_blocks, double seconds);
  void AddLoad(int64_t num_blocks, double seconds);
  void AddService(double seconds);
  void AddQueue(double seconds);
  Values values() const;

  // Whether it is cheaper to restore `num_blocks` blocks than to compute their
  // tokens. Says yes while either is unknown, and now and then (every 32nd
  // time) against the averages, which would otherwise never be measured again.
  bool PreferRestore(int64_t num_blocks);

 private:
  mutable Mutex mu_;
  Values values_ XC_GUARDED_BY(mu_);
  uint64_t num_recomputes_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_RATES_H_
