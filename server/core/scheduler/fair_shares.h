// How tenants share the engine, weighted and in tokens.
//
// Two rules. Over time: start-time fair queuing (Goyal, Vin, Cheng 1996). Each
// tenant has a virtual time, which its tokens over its weight move on, and the
// one that is behind comes first; who had nothing to do gains nothing by it.
// In each step, where somebody waits for its next token: another tenant of the
// same weight makes the step longer by two fifths of what it would take without
// that tenant, or has as many rows as the one who waits while they take no more
// than its own step, so that its flood never doubles the time between two
// tokens. What takes its time at once makes up for it in the next steps: blocks
// that are sealed or rematerialized; and of a tenant that wants more rows than
// the one who waits, for prompts or for answers, rows of which one takes more
// than that one by itself, for it reads many thousand keys: several of them
// come in one step of many, and the others are as they would be without. What a
// row costs beside a step's fixed part, what a key, and what a block, is
// measured.
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

// What a step takes that has so many rows, which read so many keys: fixed +
// rows
// * row + keys * key seconds. By least squares of the relative error over the
// last steps, the latest weighing most.
class StepCost {
 public:
  void Add(int64_t rows, double keys, double seconds);

  // What the next one takes; 0 before the first.
  double seconds(double rows, double keys) const {
    return fixed_ + rows * row_ + keys * key_;
  }
  // What one more row adds that reads so many keys. 0: not known, steps having
  // been of one size, or too little to be measured.
  double row_seconds(double keys) const {
    return measured_ ? row_ + keys * key_ : 0;
  }
  // Rows of the largest step of late.
  double largest() const { return largest_; }

 private:
  // Of 1 / rows, keys / rows and seconds / rows: weighted means, and of their
  // products.
  struct Means {
    double weight = 0, x = 0, k = 0, y = 0, xx = 0, kk = 0, xk = 0, xy = 0,
           ky = 0;
  };
  Means means_;
  double fixed_ = 0, row_ = 0, key_ = 0;
  bool measured_ = false;
  double largest_ = 0;
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
    int64_t drafts = 0;  // rows beside those, of what may turn out wrong
    bool waits = false;  // some of them are of answers under way
    double depth = 0;    // keys that the next of them reads
    int64_t gets = 0;    // rows
    double keys = 0;     // that these read
    int64_t seals = 0;   // blocks that these fill, which takes time as well
  };
  // Empty, of the tenant's weight.
  Part PartOf(std::string_view tenant) const;

  // Gives rows to parts of different tenants, `budget` in all. Most of the
  // time, where there are enough, each gets one at least. Drafts get theirs as
  // any, but nobody is taken for a flood for having them.
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

  // Who waits and has the shortest step by itself, for its weight: what each of
  // the others may add to a step follows from it.
  struct Waiter {
    double rows = 0;     // that it has, or is about to get; over its weight
    double seconds = 0;  // what those that it has take; over its weight
    double step = 0;     // what all of them take
    double weight = 1;
    std::string_view tenant;
  };
  struct Limit {
    Waiter first;   // of no rows: nobody waits
    Waiter second;  // whose the limit of the first one is

    // Null: none.
    const Waiter* Of(std::string_view tenant) const {
      const Waiter& w = tenant == first.tenant ? second : first;
      return w.rows > 0 ? &w : nullptr;
    }
  };
  Limit LimitOf(std::span<const Part> parts) const;
  // It wants more rows than who waits, and one takes more than that one by
  // itself.
  bool IsBeyond(const Waiter* waiter, const Part& part) const;
  static double ShareOf(const Waiter& waiter, double weight);
  // Seconds that a tenant may add whose rows take so long.
  static double SecondsOf(const Waiter* waiter, double weight,
                          double row_seconds);
  // Rows that a part may have of a step in all.
  double RowsOf(const Limit& limit, const Part& part, double owed) const;
  double OwedSeconds(std::string_view tenant) const;
  // What a part takes of a step.
  double SecondsOf(const Part& part) const;
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
