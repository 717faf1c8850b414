#include "server/core/tenants/tenant_ledger.h"

#include <algorithm>
#include <chrono>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

constexpr TenantLimitDef kTable[] = {
    {TenantLimit::kRequests, "requests", Reason::kTenantRequests},
    {TenantLimit::kQueuedTokens, "queued-tokens", Reason::kTenantQueuedTokens},
    {TenantLimit::kTokensPerMinute, "tokens-per-minute",
     Reason::kTenantTokensPerMinute},
    {TenantLimit::kSessions, "sessions", Reason::kTenantSessions},
    {TenantLimit::kPageBytes, "page-bytes", Reason::kTenantPageBytes},
};
static_assert(std::size(kTable) == kNumTenantLimits);

constexpr size_t Index(TenantLimit limit) { return static_cast<size_t>(limit); }

int64_t SteadyMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Where all of the minute's tokens are asked for, and none of them is old.
constexpr int64_t kLeastRetryMs = 1000;

}  // namespace

std::span<const TenantLimitDef> TenantLimitTable() { return kTable; }

const TenantLimitDef& DefOf(TenantLimit limit) { return kTable[Index(limit)]; }

TenantLedger::TenantLedger(std::function<int64_t()> steady_ms)
    : steady_ms_(steady_ms ? std::move(steady_ms) : SteadyMs) {}

TenantLedger::~TenantLedger() = default;

void TenantLedger::SetPolicies(const TenantPolicies& policies) {
  MutexLock lock(mu_);
  // One that is held comes back with its counts, should it be named again.
  std::erase_if(accounts_, [&](const auto& entry) {
    return !policies.contains(entry.first) && entry.second.use_count() == 1;
  });
  for (const auto& [tenant, account] : accounts_) {
    if (policies.contains(tenant)) continue;
    MutexLock account_lock(account->mu);
    account->policy = TenantPolicy();
  }
  for (const auto& [tenant, policy] : policies) {
    std::shared_ptr<Account>& account = accounts_[tenant];
    if (account == nullptr) account = std::make_shared<Account>(steady_ms_);
    MutexLock account_lock(account->mu);
    account->policy = policy;
  }
}

std::shared_ptr<TenantLedger::Account> TenantLedger::AccountOf(
    std::string_view tenant) const {
  MutexLock lock(mu_);
  const auto it = accounts_.find(tenant);
  return it == accounts_.end() ? nullptr : it->second;
}

int64_t TenantLedger::WeightOf(std::string_view tenant) const {
  const std::shared_ptr<Account> account = AccountOf(tenant);
  if (account == nullptr) return 1;
  MutexLock lock(account->mu);
  return account->policy.weight;
}

bool TenantLedger::has_several() const {
  MutexLock lock(mu_);
  return accounts_.size() > 1;
}

absl::StatusOr<TenantLedger::Hold> TenantLedger::Take(std::string_view tenant,
                                                      TenantLimit limit,
                                                      int64_t amount,
                                                      int64_t beside) {
  std::shared_ptr<Account> account = AccountOf(tenant);
  if (account == nullptr) return Hold();
  const size_t i = Index(limit);
  {
    MutexLock lock(account->mu);
    const std::optional<int64_t> most = account->policy.limits[i];
    const bool a_minutes = limit == TenantLimit::kTokensPerMinute;
    const int64_t now_ms = a_minutes ? steady_ms_() : 0;
    if (a_minutes) beside += account->spent.Sum(now_ms);
    const int64_t used = account->held[i] + beside;
    if (most.has_value() && amount > 0 && amount > *most - used) {
      ++account->refusals[i];
      const TenantLimitDef& def = DefOf(limit);
      absl::Status status =
          WithReason(absl::ResourceExhaustedError(absl::StrCat(
                         "tenant '", std::string(tenant), "' may have ",
                         std::string(def.name), "=", *most, "; it has ", used,
                         " and asks for ", amount, " more")),
                     def.reason);
      const bool stays =
          limit == TenantLimit::kSessions || limit == TenantLimit::kPageBytes;
      if (stays || amount > *most) return WithRetryAfter(status, 0);
      if (!a_minutes) return status;  // whoever knows the queue knows when
      return WithRetryAfter(
          status,
          std::max(kLeastRetryMs,
                   account->spent.MsUntil(
                       now_ms, std::max<int64_t>(
                                   0, *most - account->held[i] - amount))));
    }
    account->held[i] += amount;
  }
  return Hold(std::move(account), limit, amount);
}

TenantLedger::Hold::~Hold() {
  if (account_ == nullptr) return;
  MutexLock lock(account_->mu);
  account_->held[Index(limit_)] -= amount_;
}

void TenantLedger::Hold::Spend(int64_t n) {
  if (account_ == nullptr) return;
  n = std::min(n, amount_);
  amount_ -= n;
  MutexLock lock(account_->mu);
  account_->held[Index(limit_)] -= n;
  account_->spent.Add(account_->steady_ms(), n);
}

std::vector<TenantLedger::Use> TenantLedger::uses() const {
  std::vector<Use> out;
  MutexLock lock(mu_);
  for (const auto& [tenant, account] : accounts_) {
    MutexLock account_lock(account->mu);
    for (size_t i = 0; i < kNumTenantLimits; ++i) {
      const std::optional<int64_t> most = account->policy.limits[i];
      if (!most.has_value()) continue;
      Use use{.tenant = tenant,
              .limit = kTable[i].id,
              .most = *most,
              .used = account->held[i],
              .refusals = account->refusals[i]};
      if (use.limit == TenantLimit::kTokensPerMinute) {
        use.used += account->spent.Sum(steady_ms_());
      }
      out.push_back(std::move(use));
    }
  }
  return out;
}

}  // namespace xcache
