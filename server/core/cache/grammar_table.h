// Compiled grammars by what they were made of: a few that were used last stay,
// their memory promised by the budget (rule R5), and one that nobody holds goes
// where others need it. Specs come from clients, and compiling takes up to
// seconds: a thread of its own does it, for one tenant after the other, and not
// for a request that is gone.
//
// Thread-safe.
#ifndef XCACHE_SERVER_CORE_CACHE_GRAMMAR_TABLE_H_
#define XCACHE_SERVER_CORE_CACHE_GRAMMAR_TABLE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "engine/grammar/grammar.h"
#include "server/core/core_metrics.h"

namespace xcache {

class GrammarTable {
 public:
  // A grammar, or that one is to come. Who holds it keeps it in memory.
  class Entry {
   public:
    bool ready() const { return ready_; }
    // OK as long as it is not ready.
    absl::Status status() const;
    // Null where there is none.
    const std::shared_ptr<const Grammar>& grammar() const { return grammar_; }

   private:
    friend class GrammarTable;
    std::atomic<bool> ready_{false};
    // Written before `ready_`, and never again.
    absl::StatusCode code_ = absl::StatusCode::kOk;
    std::string message_;
    std::shared_ptr<const Grammar> grammar_;
    MemoryReservation memory_;
    // The table's.
    GrammarSpec spec_;  // until it is compiled
    uint64_t used_ = 0;
  };
  using EntryPtr = std::shared_ptr<const Entry>;

  static constexpr int64_t kMaxGrammarBytes = int64_t{32} << 20;
  static constexpr int64_t kMaxKeptBytes = int64_t{64} << 20;
  static constexpr size_t kMaxKept = 256;

  // All are borrowed. `wake`: an entry became ready; called from its thread.
  GrammarTable(const Tokenizer& tokenizer, MemoryBudget& memory,
               CoreMetrics& metrics, std::function<void()> wake);
  ~GrammarTable() { Stop(); }

  // REQUIRES: a kind that is not kNone; CheckGrammar is OK.
  EntryPtr Get(const std::string& tenant, const GrammarSpec& spec)
      XC_EXCLUDES(mu_);
  // After the compilation under way; what waits is never ready. Idempotent.
  void Stop() XC_EXCLUDES(mu_);

 private:
  using Entries = std::map<std::string, std::shared_ptr<Entry>>;
  struct Job {
    std::string key;
    std::shared_ptr<Entry> entry;
  };

  void Loop() XC_EXCLUDES(mu_);
  // The next tenant's first; nothing of it is left in `jobs_`.
  Job NextJob() XC_REQUIRES(mu_);
  absl::Status Compile(Entry& entry) XC_EXCLUDES(mu_);
  absl::StatusOr<MemoryReservation> Reserve(int64_t bytes);
  // The one used longest ago that nobody holds; returns its bytes, and -1 where
  // there is none.
  int64_t DropOldest() XC_REQUIRES(mu_);
  int64_t Reclaim(int64_t wanted_bytes) XC_EXCLUDES(mu_);

  const Tokenizer& tokenizer_;
  MemoryBudget& memory_;
  CoreMetrics& metrics_;
  const std::function<void()> wake_;

  // Its thread's; made when it is needed first.
  std::unique_ptr<const GrammarCompiler> compiler_;
  MemoryReservation compiler_memory_;

  Mutex mu_;
  CondVar changed_;
  Entries entries_ XC_GUARDED_BY(mu_);
  std::map<std::string, std::deque<Job>> jobs_ XC_GUARDED_BY(mu_);
  std::string last_tenant_ XC_GUARDED_BY(mu_);
  int64_t kept_bytes_ XC_GUARDED_BY(mu_) = 0;
  uint64_t tick_ XC_GUARDED_BY(mu_) = 0;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  MemoryBudget::Registration reclaimer_;
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CACHE_GRAMMAR_TABLE_H_
