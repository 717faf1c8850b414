// What the core counts and times, for whoever exports it (Prometheus in the
// server, plain numbers in tests). No names of metrics here.
#ifndef XCACHE_SERVER_CORE_CORE_METRICS_H_
#define XCACHE_SERVER_CORE_CORE_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace xcache {

enum class CoreCounter {
  kPromptTokens,  // of finished requests
  kGeneratedTokens,
  kPrefilledTokens,  // forwarded through the model, decode not included
  kDraftedTokens,    // that had a row of a step
  kAcceptedTokens,   // those of them that the answers took
  kReusedDevice,     // tokens, by source
  kReusedHost,
  kReusedDisk,
  kReusedRemote,
  kBlocksSealed,
  kBlocksRematerialized,
  kSingleFlightWaits,    // a request waited for a block that another computes
  kRecomputedByCost,     // blocks that had a page and were cheaper to compute
  kNotFetchedByCost,     // blocks that the shared tier was not asked for
  kPagesMissing,         // named or expected, not there (R3)
  kPagesCorrupt,         // DATA_LOSS on load or rematerialization (R3)
  kWorkingSetEvictions,  // blocks dropped from device memory
  kSequenceEvictions,    // idle sessions' sequences dropped
  kPreemptions,          // running requests whose sequence was dropped
  kQueueRejections,      // RESOURCE_EXHAUSTED at submission
  kCommits,              // turns made durable
  kCommitFailures,       // turns whose commit failed (kept in memory)
  kSessionsExpired,
  kSessionsCorrupt,  // manifests that could not be read
  kSessionsResume,   // sessions that were given this remat policy
  kSessionsStep,
  kSteps,     // Engine::Step calls
  kStepRows,  // rows in them
  kCount,
};

enum class CoreHistogram {  // all in seconds
  kQueue,
  kRestore,
  kPrefill,
  kDecode,
  kCommit,
  kTtft,
  kInterToken,
  kEndToEnd,
  kStep,
  kRematBlock,      // per block
  kPageLoad,        // per batch of pages read from disk
  kRemoteWait,      // per request that waited for pages of the shared tier
  kGrammarCompile,  // per grammar
  kGrammarMask,     // per token of an answer that has a grammar
  kCount,
};

// Called from several threads at once; must be cheap and must not block.
class CoreMetrics {
 public:
  virtual ~CoreMetrics() = default;
  virtual void Add(CoreCounter counter, uint64_t n) = 0;
  virtual void Observe(CoreHistogram histogram, double seconds) = 0;
};

// Sums in memory: the default, and what tests read.
class PlainMetrics final : public CoreMetrics {
 public:
  void Add(CoreCounter counter, uint64_t n) override {
    counters_[static_cast<size_t>(counter)].fetch_add(
        n, std::memory_order_relaxed);
  }
  void Observe(CoreHistogram histogram, double) override {
    observations_[static_cast<size_t>(histogram)].fetch_add(
        1, std::memory_order_relaxed);
  }
  uint64_t counter(CoreCounter c) const {
    return counters_[static_cast<size_t>(c)].load(std::memory_order_relaxed);
  }
  uint64_t observations(CoreHistogram h) const {
    return observations_[static_cast<size_t>(h)].load(
        std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, static_cast<size_t>(CoreCounter::kCount)>
      counters_{};
  std::array<std::atomic<uint64_t>, static_cast<size_t>(CoreHistogram::kCount)>
      observations_{};
};

// A moment's state.
struct CoreGauges {
  uint64_t running = 0;         // requests with a sequence
  uint64_t waiting = 0;         // requests in the queue
  uint64_t waiting_tokens = 0;  // prompt tokens of those
  uint64_t sessions = 0;
  uint64_t sessions_in_memory = 0;       // with a working set
  uint64_t working_set_blocks = 0;       // blocks of 64 tokens in device memory
  uint64_t working_set_bytes = 0;        // the same, with sequences
  double prefill_tokens_per_second = 0;  // running averages
  double decode_tokens_per_second = 0;
  double remat_blocks_per_second = 0;
  double remat_bytes_per_second = 0;  // page bytes
  double clock_jump_seconds = 0;      // SessionClock::JumpMs
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CORE_METRICS_H_
