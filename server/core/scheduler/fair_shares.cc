#include "server/core/scheduler/fair_shares.h"

#include <algorithm>
#include <numeric>
#include <utility>
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
// Variance of 1 / rows, of its mean squared, below which steps say nothing of
// what a row costs.
constexpr double kLeastVariance = 0.04;
// What a key costs is followed as fast as steps differ by so many keys a row:
// where they differ by less it is hardly seen, and a row's cost has it.
constexpr double kKeysThatTell = 500;
// A step that took more times than this what it should counts as so many: it
// may have been held up by something else. What is true is followed all the
// same, within some ten steps.
constexpr double kOutlier = 2;
// How far beyond the largest step of late the line is believed.
constexpr double kFurther = 4;

// In one of so many steps come the rows of a flood that by themselves take more
// than who waits: fewer than the twenty that make p95.
constexpr double kRareEvery = 24;

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

void StepCost::Add(int64_t num_rows, double num_keys, double seconds) {
  const auto n = static_cast<double>(num_rows);
  if (measured_ && n <= largest_) {
    seconds = std::min(seconds, kOutlier * this->seconds(n, num_keys));
  }
  largest_ = std::max(n, largest_ * kKeep);
  Means& m = means_;
  m.weight = kKeep * m.weight + 1;
  const double x = 1 / n, k = num_keys / n, y = seconds / n;
  const auto follow = [&](double& mean, double value) {
    mean += (value - mean) / m.weight;
  };
  follow(m.x, x);
  follow(m.k, k);
  follow(m.y, y);
  follow(m.xx, x * x);
  follow(m.kk, k * k);
  follow(m.xk, x * k);
  follow(m.xy, x * y);
  follow(m.ky, k * y);
  const double xx = m.xx - m.x * m.x;
  if (xx >= kLeastVariance * m.x * m.x) {
    const double xk = m.xk - m.x * m.k, xy = m.xy - m.x * m.y;
    // What is left of keys and seconds beside what 1 / rows says of them.
    const double kk = std::max(0.0, m.kk - m.k * m.k - xk * xk / xx);
    const double ky = m.ky - m.k * m.y - xk * xy / xx;
    constexpr double kPrior = kKeysThatTell * kKeysThatTell;
    key_ = std::max(0.0, (ky + kPrior * key_) / (kk + kPrior));
    // A row that takes more than all of a step: that is what it reads, where it
    // reads more.
    if (xy < key_ * xk && -xk > kKeysThatTell * xx) key_ = xy / xk;
    const double fixed = std::max(0.0, (xy - key_ * xk) / xx);
    row_ = std::max(0.0, m.y - fixed * m.x - key_ * m.k);
    measured_ = true;
  }
  fixed_ = std::max(0.0, (m.y - row_ - key_ * m.k) / m.x);
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

double FairShares::SecondsOf(const Part& part) const {
  return cost_.seconds(static_cast<double>(part.gets), part.keys) -
         cost_.seconds(0, 0);
}

FairShares::Limit FairShares::LimitOf(std::span<const Part> parts) const {
  Limit limit;
  for (const Part& part : parts) {
    if (!part.waits) continue;
    const auto gets = static_cast<double>(std::max<int64_t>(1, part.gets));
    // Both may be about to get more.
    const double rows = gets + (part.gets < part.wants ? 1 : 0);
    const Waiter waiter = {
        .rows = rows / part.weight,
        .seconds = cost_.seconds(gets, gets * part.depth) / part.weight,
        .step = cost_.seconds(rows, rows * part.depth),
        .weight = part.weight,
        .tenant = part.tenant};
    if (limit.first.rows == 0 || waiter.seconds < limit.first.seconds) {
      limit.second = std::exchange(limit.first, waiter);
    } else if (limit.second.rows == 0 ||
               waiter.seconds < limit.second.seconds) {
      limit.second = waiter;
    }
  }
  return limit;
}

bool FairShares::IsBeyond(const Waiter* waiter, const Part& part) const {
  constexpr double kNearly = 1.05;  // it is measured, not known
  return waiter != nullptr &&
         static_cast<double>(part.wants) > part.weight * waiter->rows &&
         cost_.row_seconds(part.depth) > kNearly * waiter->step;
}

double FairShares::ShareOf(const Waiter& waiter, double weight) {
  return kShare * weight * waiter.seconds;
}

double FairShares::SecondsOf(const Waiter* waiter, double weight,
                             double row_seconds) {
  if (waiter == nullptr) return kNoLimit;
  // As many rows as this one has never make a step more than twice as long.
  return std::max(ShareOf(*waiter, weight),
                  weight * std::min(waiter->rows * row_seconds,
                                    waiter->step / waiter->weight));
}

double FairShares::RowsOf(const Limit& limit, const Part& part,
                          double owed) const {
  const Waiter* const waiter = limit.Of(part.tenant);
  if (waiter == nullptr) return kNoLimit;
  const double row = cost_.row_seconds(part.depth);
  if (IsBeyond(waiter, part)) {
    return owed > 0 ? 0 : kRareEvery * ShareOf(*waiter, part.weight) / row;
  }
  if (row <= 0) return owed > 0 ? 0 : part.weight * waiter->rows;
  const double seconds = SecondsOf(waiter, part.weight, row);
  return std::min((seconds - std::max(0.0, owed)) / row,
                  kFurther * cost_.largest());
}

void FairShares::Share(int64_t budget, std::span<Part> parts) const {
  if (parts.size() == 1) {
    parts[0].gets = std::min(budget, parts[0].wants + parts[0].drafts);
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
      const bool owes = owed[i] > 0 && first.Of(parts[i].tenant) != nullptr;
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
      // What is a whole row but for rounding is one.
      const double room = std::min(
          RowsOf(limit, part, owed[i]) - static_cast<double>(part.gets) + 1e-6,
          static_cast<double>(std::min(
              {quantum, part.wants + part.drafts - part.gets, budget})));
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
  double keys = 0;
  for (const Part& part : parts) {
    rows += part.gets;
    seals += part.seals;
    keys += part.keys;
  }
  if (seals > 0 && rows <= kSmallStep && cost_.row_seconds(0) > 0) {
    const double should = cost_.seconds(static_cast<double>(rows), keys);
    const double each =
        std::max(0.0, seconds - should) / static_cast<double>(seals);
    const double most = 2 * seal_seconds_ + cost_.seconds(1, 0);
    seal_seconds_ += kNewSeal * (std::min(each, most) - seal_seconds_);
  }
  seconds = std::max(0.0, seconds - static_cast<double>(seals) * seal_seconds_);
  const Limit limit = LimitOf(parts);
  const bool several = parts.size() > 1;
  const bool waits = limit.first.rows > 0;
  // A prompt's rows that come at once read their keys together: less than the
  // sum.
  const bool at_once =
      std::any_of(parts.begin(), parts.end(), [&](const Part& part) {
        return part.gets > 1 && IsBeyond(limit.Of(part.tenant), part);
      });
  // Those that somebody waits for while others compute, and small ones: a large
  // step of one tenant has rows of another kind.
  if (!at_once && (rows <= kSmallStep || (waits && several))) {
    cost_.Add(rows, keys, seconds);
  }
  if (several) ++num_shared_;
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
    const Waiter* const waiter = limit.Of(tenant);
    const double may =
        is_there && IsBeyond(waiter, *part)
            ? ShareOf(*waiter, weight)
            : SecondsOf(waiter, weight,
                        cost_.row_seconds(is_there ? part->depth : 0));
    const double left = may - (is_there ? SecondsOf(*part) : 0);
    account.owed_seconds =
        std::max(-at_once_seconds_, account.owed_seconds - std::max(0.0, left));
  }
  at_once_seconds_ *= kKeepAtOnce;
  for (const Part& part : parts) {
    if (part.seals > 0) {
      Charge(part.tenant, part.weight,
             static_cast<double>(part.seals) * seal_seconds_);
    }
    const Waiter* const waiter = limit.Of(part.tenant);
    if (part.gets > 0 && IsBeyond(waiter, part)) {
      accounts_[part.tenant].owed_seconds +=
          kRareEvery * ShareOf(*waiter, part.weight);
    }
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
  const double most = SecondsOf(LimitOf(parts).Of(tenant),
                                static_cast<double>(WeightOf(tenants_, tenant)),
                                cost_.row_seconds(0));
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
  const double row = cost_.row_seconds(0);
  if (row > 0) account.time += seconds / row / weight;
  account.owed_seconds += seconds;
  at_once_seconds_ = std::max(at_once_seconds_, seconds);
}

}  // namespace xcache
