// One hard cap over all memory that grows with load (--memory-bytes), divided
// into named accounts, and the way to make room in it (rule R5: memory is
// reserved before it is used). It counts promises; it allocates nothing.
//
//   budget.AddReclaimer("working sets", 0, evict_working_sets);
//   auto reservation = budget.Reserve(MemoryAccount::kSequences, bytes);
//   if (!reservation) return absl::ResourceExhaustedError(...);
//   state->memory = *std::move(reservation);  // given back with the state
//
// Thread-safe. A reclaimer is called without any lock of the budget, on the
// thread that reserves. REQUIRES: whoever reserves holds no lock that a
// reclaimer takes.
#ifndef XCACHE_ENGINE_BASE_MEMORY_BUDGET_H_
#define XCACHE_ENGINE_BASE_MEMORY_BUDGET_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/mutex.h"

namespace xcache {

enum class MemoryAccount {
  kHostPages,    // pages in host memory, queued and being read ones included
  kWorkingSets,  // K/V rows of idle sequences
  kSequences,    // K/V rows and state of live sequences
  kRocksDb,      // block cache and memtables, at their caps
  kStoreIndex,   // the store's indexes of pages and sessions
  kSessions,     // manifests that are not on disk (yet)
  kCodecs,       // matrices and profiles of open codecs
  kGrammars,     // compiled grammars, and the vocabulary as they need it
  kAnswers,      // tokens of answers, for histories that are sent again
  kRequests,     // what clients send, until it is answered
};
inline constexpr int kNumMemoryAccounts = 10;
std::string_view MemoryAccountName(MemoryAccount account);  // "host_pages", ...

class MemoryBudget;

// Bytes promised to one account; gives them back when it goes. Movable. Must
// not outlive its budget. Not thread-safe.
class MemoryReservation {
 public:
  MemoryReservation() = default;  // of nothing
  ~MemoryReservation() { Release(); }
  MemoryReservation(MemoryReservation&& other) noexcept;
  MemoryReservation& operator=(MemoryReservation&& other) noexcept;

  int64_t bytes() const { return bytes_; }
  // Grows (reclaiming, as Reserve does) or shrinks. False: nothing changed.
  bool Resize(int64_t bytes);
  // The same, without calling any reclaimer.
  bool TryResize(int64_t bytes);
  // Moves the bytes to another account (a sequence becomes a working set).
  void Transfer(MemoryAccount account);
  void Release();

 private:
  friend class MemoryBudget;
  MemoryReservation(MemoryBudget* budget, MemoryAccount account, int64_t bytes)
      : budget_(budget), account_(account), bytes_(bytes) {}

  bool ResizeTo(int64_t bytes, bool reclaim);

  MemoryBudget* budget_ = nullptr;
  MemoryAccount account_ = MemoryAccount::kRequests;
  int64_t bytes_ = 0;
};

class MemoryBudget {
 public:
  // Frees what it can of `wanted_bytes` by releasing reservations and returns
  // the bytes that it released; 0: nothing to free now. May be called from many
  // threads together. Must not reserve.
  using ReclaimFn = std::function<int64_t(int64_t wanted_bytes)>;

  // Takes a reclaimer out again when it goes; waits for running calls of it.
  class Registration {
   public:
    Registration() = default;
    ~Registration() { Reset(); }
    Registration(Registration&& other) noexcept;
    Registration& operator=(Registration&& other) noexcept;
    void Reset();  // REQUIRES: not called from within the reclaimer

   private:
    friend class MemoryBudget;
    struct Entry;
    Registration(MemoryBudget* budget, std::shared_ptr<Entry> entry);
    MemoryBudget* budget_ = nullptr;
    std::shared_ptr<Entry> entry_;
  };

  explicit MemoryBudget(int64_t cap_bytes);
  ~MemoryBudget();  // REQUIRES: no reservation and no registration is left
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // Promises `bytes` (>= 0) to `account`, calling reclaimers by rising
  // `priority` for as long as they free something and it does not fit. Nothing:
  // it does not fit.
  [[nodiscard]] std::optional<MemoryReservation> Reserve(MemoryAccount account,
                                                         int64_t bytes);
  // The same, without calling any reclaimer.
  [[nodiscard]] std::optional<MemoryReservation> TryReserve(
      MemoryAccount account, int64_t bytes);

  [[nodiscard]] Registration AddReclaimer(std::string name, int priority,
                                          ReclaimFn reclaim);

  int64_t cap_bytes() const { return cap_bytes_; }
  int64_t used_bytes() const;
  int64_t used_bytes(MemoryAccount account) const;
  // The most that was ever promised at once.
  int64_t peak_bytes() const;
  // How often a Reserve did not fit even after reclaiming.
  int64_t num_refused() const;

 private:
  friend class MemoryReservation;
  bool Take(MemoryAccount account, int64_t bytes, bool reclaim);
  bool TakeNow(MemoryAccount account, int64_t bytes, int64_t* missing);
  void GiveBack(MemoryAccount account, int64_t bytes);
  void Move(MemoryAccount from, MemoryAccount to, int64_t bytes);

  const int64_t cap_bytes_;
  mutable Mutex mu_;
  CondVar idle_;  // a reclaimer's call has ended
  int64_t used_bytes_ XC_GUARDED_BY(mu_) = 0;
  int64_t peak_bytes_ XC_GUARDED_BY(mu_) = 0;
  int64_t num_refused_ XC_GUARDED_BY(mu_) = 0;
  std::array<int64_t, kNumMemoryAccounts> account_bytes_ XC_GUARDED_BY(mu_){};
  // By rising priority.
  std::vector<std::shared_ptr<Registration::Entry>> reclaimers_
      XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_MEMORY_BUDGET_H_
