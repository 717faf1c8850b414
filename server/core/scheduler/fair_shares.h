// How tenants share the engine, weighted and in tokens.
//
// Two rules. Over time: start-time fair queuing (Goyal, Vin, Cheng 1996). Each
// tenant has a virtual time, which its tokens over its weight move on, and the
// one that is behind comes first; who had nothing to do gains nothing by it.
// In each step, where somebody waits for its next token: another tenant of the
// same weight makes the step longer by two fifths of what it would take without
// that tenant, or has as many rows as the one who waits, so that its flood never
// doubles the time between two tokens. Blocks that are sealed or rematerialized
// take their time at once: their tenant makes up for it in the next steps. What
// a row costs beside a step's fixed part, and a block, is measured.
//
// A tenant by itself is not held up by any of this. Knows no requests.
//
// REQUIRES: scheduler's thread.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_FAIR_SHARES_H_
#define XCACHE_SERVER_CORE_SCHEDULER_FAIR_SHARES_H_

#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "server/core/tenants/tenant_ledger.h"

namespace xcache {

// What a step of so many rows takes: fixed + rows * per_row seconds, by least
// squares over the last steps, the latest weighing most.
class StepCost {
 public:
  void Add(int64_t rows, double seconds);

  // What the next one takes; 0 before the first.
  double seconds(double rows) const { return fixed_ + rows * per_row_; }
  // 0: not known, steps having been of one size, or too little to be measured.
  double per_row() const { return per_row_; }
  // The rows that take as long as a step's fixed part; 0: not known. At most
  // some times the rows of the largest step of late.
  double fixed_rows() const;

 private:
  double weight_ = 0, rows_ = 0, rows2_ = 0, seconds_ = 0, rows_seconds_ = 0;
  double fixed_ = 0;
  double per_row_ = 0;
  bool measured_ = false;
  double largest_ = 0;  // rows of a step, lately
};

class FairShares {
 public:
  static constexpr double kNoLimit = std::numeric_limits<double>::infinity();

  // `tenants` may be null.
  explicit FairShares(TenantLedger* tenants) : tenants_(tenants) {}

  // One tenant's part of a step.
  struct Part {
    std::string tenant;
    double weight = 1;
    int64_t wants = 0;   // rows at most, more than 0
    bool waits = false;  // some of them are of answers under way
    int64_t gets = 0;    // rows
    int64_t seals = 0;   // blocks that these fill, which takes time as well
  };
  // Empty, of the tenant's weight.
  Part PartOf(std::string_view tenant) const;

  // Gives rows to parts of different tenants, `budget` in all. Most of the
  // time, where there are enough, each gets one at least.
  void Share(int64_t budget, std::span<Part> parts) const;
  // A step of these parts was run.
  void Ran(std::span<const Part> parts, double seconds);

  // --- Rematerializing, between two steps of which the next one will have
  // these parts.

  // Seconds that it may take for a tenant; kNoLimit: nobody else waits for a
  // token. Zero: the tenant had more than its share lately.
  double RestoreSeconds(std::string_view tenant,
                        std::span<const Part> parts) const;
  // It took so long.
  void Restored(std::string_view tenant, double seconds);

  // Who is behind comes first.
  double VirtualTime(std::string_view tenant) const;
  const StepCost& cost() const { return cost_; }

 private:
  struct Account {
    double time = 0;          // tokens over weight
    bool backlogged = false;  // it wanted more than it got
    // What it took beyond its rows, all at once, and has not made up for yet.
    // Below zero: what it left of its shares of late, as much as it may take at
    // once.
    double owed_seconds = 0;
  };

  // For the sake of those who wait: what each of the others may add to a step,
  // for its weight. In rows, and in the seconds that they take or that
  // something else may take instead.
  struct Limit {
    double rows = kNoLimit;
    double seconds = kNoLimit;
    std::string_view whose;  // who waits and leaves least
    // And whoever leaves least beside that one: the limit of itself.
    double own_rows = kNoLimit;
    double own_seconds = kNoLimit;

    double RowsOf(std::string_view tenant, double weight) const {
      return weight * (tenant == whose ? own_rows : rows);
    }
    double SecondsOf(std::string_view tenant, double weight) const {
      return weight * (tenant == whose ? own_seconds : seconds);
    }
  };
  Limit LimitOf(std::span<const Part> parts) const;
  double OwedSeconds(std::string_view tenant) const;
  void Charge(std::string_view tenant, double weight, double seconds);

  TenantLedger* const tenants_;
  StepCost cost_;
  double seal_seconds_ = 0;     // of a block, in a small step
  double at_once_seconds_ = 0;  // the most that was charged at once, lately
  std::map<std::string, Account, std::less<>> accounts_;
  double floor_ = 0;         // the virtual time of who was behind last
  uint64_t num_shared_ = 0;  // steps of several tenants
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_FAIR_SHARES_H_
