#include "server/core/scheduler/fair_shares.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "server/core/tenants/take.h"

namespace xcache {
namespace {

// Of the time that a step takes for somebody who waits, what another tenant may
// add. Less than all of it: a block that is sealed or rematerialized takes its
// time at once, and is made up for afterwards. At two fifths, steps with such a
// block are fewer than one in twenty.
constexpr double kShare = 0.4;

// Half of the weight is in the last 35 steps (0.98^35 = 0.49): what a row costs
// changes with the length of the contexts at hand.
constexpr double kKeep = 0.98;
// Variance of the rows below which steps say nothing of what a row costs.
constexpr double kLeastVariance = 0.05;
// A step that took more times than this what it should counts as so many: it
// may have been held up by something else. What is true is followed all the
// same, within some ten steps.
constexpr double kOutlier = 2;
// How far beyond the largest step of late the line is believed.
constexpr double kFurther = 4;

// Steps of more rows than these say little of what sealing a block takes.
constexpr int64_t kSmallStep = 16;
constexpr double kNewSeal = 0.1;

// The most that was charged at once is forgotten within some thousand steps.
constexpr double kKeepAtOnce = 0.999;

// Rows are given out in so many rounds at least, for shares to come out even.
constexpr int64_t kRounds = 64;

// One in so many steps that tenants share is without those who want more than
// who waits and wants least: what that one's step takes by itself is measured
// in the same moments as what it takes with others.
constexpr uint64_t kAloneEvery = 16;

}  // namespace

void StepCost::Add(int64_t num_rows, double seconds) {
  const auto n = static_cast<double>(num_rows);
  if (measured_ && n <= largest_) {
    seconds = std::min(seconds, kOutlier * this->seconds(n));
  }
  largest_ = std::max(n, largest_ * kKeep);
  weight_ = kKeep * weight_ + 1;
  rows_ = kKeep * rows_ + n;
  rows2_ = kKeep * rows2_ + n * n;
  seconds_ = kKeep * seconds_ + seconds;
  rows_seconds_ = kKeep * rows_seconds_ + n * seconds;
  const double mean_rows = rows_ / weight_;
  const double variance = rows2_ / weight_ - mean_rows * mean_rows;
  if (variance >= kLeastVariance) {
    const double covariance =
        rows_seconds_ / weight_ - mean_rows * seconds_ / weight_;
    per_row_ = std::max(0.0, covariance / variance);
    measured_ = true;
  }
  fixed_ = std::max(0.0, seconds_ / weight_ - mean_rows * per_row_);
}

double StepCost::fixed_rows() const {
  if (!measured_) return 0;
  const double most = kFurther * largest_;
  return fixed_ < most * per_row_ ? fixed_ / per_row_ : most;
}

FairShares::Part FairShares::PartOf(std::string_view tenant) const {
  return {.tenant = std::string(tenant),
          .weight = static_cast<double>(WeightOf(tenants_, tenant))};
}

double FairShares::VirtualTime(std::string_view tenant) const {
  const auto it = accounts_.find(tenant);
  if (it == accounts_.end()) return floor_;
  // What it did not want is not saved up for it.
  return it->second.backlogged ? it->second.time
                               : std::max(it->second.time, floor_);
}

double FairShares::OwedSeconds(std::string_view tenant) const {
  const auto it = accounts_.find(tenant);
  return it == accounts_.end() ? 0 : it->second.owed_seconds;
}

FairShares::Limit FairShares::LimitOf(std::span<const Part> parts) const {
  Limit limit;
  for (const Part& part : parts) {
    if (!part.waits) continue;
    const double gets = static_cast<double>(std::max<int64_t>(1, part.gets));
    // As many as this one has never make a step more than twice as long. Both
    // may be about to get more.
    const double equal = gets + (part.gets < part.wants ? 1 : 0);
    const double rows =
        std::max(equal, kShare * (cost_.fixed_rows() + gets)) / part.weight;
    const double seconds = std::max(rows * cost_.per_row(),
                                    kShare * cost_.seconds(gets) / part.weight);
    if (limit.whose.empty() || rows < limit.rows) {
      limit.own_rows = limit.rows;
      limit.own_seconds = limit.seconds;
      limit.rows = rows;
      limit.seconds = seconds;
      limit.whose = part.tenant;
    } else if (rows < limit.own_rows) {
      limit.own_rows = rows;
      limit.own_seconds = seconds;
    }
  }
  return limit;
}

void FairShares::Share(int64_t budget, std::span<Part> parts) const {
  if (parts.size() == 1) {
    parts[0].gets = std::min(budget, parts[0].wants);
    return;
  }
  double most_wanted = kNoLimit;  // for a tenant's weight
  if (num_shared_ % kAloneEvery == kAloneEvery - 1) {
    for (const Part& part : parts) {
      if (!part.waits) continue;
      most_wanted =
          std::min(most_wanted, static_cast<double>(part.wants) / part.weight);
    }
  }
  const auto left_out = [&](const Part& part) {
    return static_cast<double>(part.wants) / part.weight > most_wanted;
  };
  std::vector<double> times, owed;
  for (Part& part : parts) {
    part.gets = 0;
    times.push_back(VirtualTime(part.tenant));
    owed.push_back(OwedSeconds(part.tenant));
  }
  const auto give = [&](size_t i, int64_t rows) {
    parts[i].gets += rows;
    budget -= rows;
    times[i] += static_cast<double>(rows) / parts[i].weight;
  };
  // A row for everybody, who is behind first: nobody is shut out. But for one
  // that has had more than that between the steps, unless that is everybody.
  std::vector<size_t> order(parts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return times[a] < times[b]; });
  const Limit first = LimitOf(parts);
  const int64_t all = budget;
  for (const bool even_if_owed : {false, true}) {
    if (budget < all) break;
    for (const size_t i : order) {
      const bool owes =
          owed[i] > 0 && first.RowsOf(parts[i].tenant, 1) < kNoLimit;
      if (left_out(parts[i]) || (owes && !even_if_owed)) continue;
      if (budget > 0) give(i, 1);
    }
  }
  const int64_t quantum = std::max<int64_t>(1, all / kRounds);
  while (budget > 0) {
    const Limit limit = LimitOf(parts);
    size_t next = parts.size();
    int64_t rows = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Part& part = parts[i];
      if (next < parts.size() && times[i] >= times[next]) continue;
      if (left_out(part)) continue;
      double room = limit.RowsOf(part.tenant, part.weight);
      if (room < kNoLimit && owed[i] > 0) {
        room = cost_.per_row() > 0 ? room - owed[i] / cost_.per_row() : 0;
      }
      // What is a whole row but for rounding is one.
      room = std::min(room - static_cast<double>(part.gets) + 1e-6,
                      static_cast<double>(
                          std::min({quantum, part.wants - part.gets, budget})));
      if (room < 1) continue;
      next = i;
      rows = static_cast<int64_t>(room);
    }
    if (next == parts.size()) return;
    give(next, rows);
  }
}

void FairShares::Ran(std::span<const Part> parts, double seconds) {
  int64_t rows = 0, seals = 0;
  for (const Part& part : parts) {
    rows += part.gets;
    seals += part.seals;
  }
  if (seals > 0 && rows <= kSmallStep && cost_.per_row() > 0) {
    const double each =
        std::max(0.0, seconds - cost_.seconds(static_cast<double>(rows))) /
        static_cast<double>(seals);
    const double most = 2 * seal_seconds_ + cost_.seconds(1);
    seal_seconds_ += kNewSeal * (std::min(each, most) - seal_seconds_);
  }
  // Those that somebody waits for while others compute, and small ones: a large
  // step of one tenant has rows of another kind.
  const bool waits = std::any_of(parts.begin(), parts.end(),
                                 [](const Part& part) { return part.waits; });
  if (rows <= kSmallStep || (waits && parts.size() > 1)) {
    cost_.Add(rows, std::max(0.0, seconds - static_cast<double>(seals) *
                                                seal_seconds_));
  }
  if (parts.size() > 1) ++num_shared_;
  const Limit limit = LimitOf(parts);
  for (auto& [tenant, account] : accounts_) {
    account.backlogged = false;
    // What it left of its part of this step.
    const auto part = std::find_if(parts.begin(), parts.end(),
                                   [&, &name = tenant](const Part& other) {
                                     return other.tenant == name;
                                   });
    const bool is_there = part != parts.end();
    const double weight = is_there
                              ? part->weight
                              : static_cast<double>(WeightOf(tenants_, tenant));
    const double took =
        is_there ? static_cast<double>(part->gets) * cost_.per_row() : 0;
    const double left = limit.SecondsOf(tenant, weight) - took;
    account.owed_seconds =
        std::max(-at_once_seconds_, account.owed_seconds - std::max(0.0, left));
  }
  at_once_seconds_ *= kKeepAtOnce;
  for (const Part& part : parts) {
    if (part.seals == 0) continue;
    Charge(part.tenant, part.weight,
           static_cast<double>(part.seals) * seal_seconds_);
  }
  double behind = kNoLimit, ahead = floor_;
  for (const Part& part : parts) {
    const double time =
        VirtualTime(part.tenant) + static_cast<double>(part.gets) / part.weight;
    Account& account = accounts_[part.tenant];
    account.time = time;
    account.backlogged = part.gets < part.wants;
    ahead = std::max(ahead, time);
    if (account.backlogged) behind = std::min(behind, time);
  }
  floor_ = std::max(floor_, behind < kNoLimit ? behind : ahead);
  std::erase_if(accounts_, [&](const auto& entry) {
    const Account& account = entry.second;
    return account.time <= floor_ && account.owed_seconds <= 0 &&
           std::none_of(parts.begin(), parts.end(), [&](const Part& part) {
             return part.tenant == entry.first;
           });
  });
}

double FairShares::RestoreSeconds(std::string_view tenant,
                                  std::span<const Part> parts) const {
  const double most = LimitOf(parts).SecondsOf(
      tenant, static_cast<double>(WeightOf(tenants_, tenant)));
  return most < kNoLimit && OwedSeconds(tenant) > 0 ? 0 : most;
}

void FairShares::Restored(std::string_view tenant, double seconds) {
  Charge(tenant, static_cast<double>(WeightOf(tenants_, tenant)), seconds);
}

void FairShares::Charge(std::string_view tenant, double weight,
                        double seconds) {
  const double before = VirtualTime(tenant);
  Account& account = accounts_[std::string(tenant)];
  account.time = before;
  if (cost_.per_row() > 0) account.time += seconds / cost_.per_row() / weight;
  account.owed_seconds += seconds;
  at_once_seconds_ = std::max(at_once_seconds_, seconds);
}

}  // namespace xcache
