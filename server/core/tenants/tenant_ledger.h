// What each tenant uses of what it may use. Whoever is about to give a tenant
// something takes it here first, and holds it for as long as it is in use; what
// a limit does not allow is RESOURCE_EXHAUSTED with the limit's reason.
//
// Only tenants that a policy names are counted, so there are as many accounts
// as an operator's file has tenants.
#ifndef XCACHE_SERVER_CORE_TENANTS_TENANT_LEDGER_H_
#define XCACHE_SERVER_CORE_TENANTS_TENANT_LEDGER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "server/core/tenants/minute_window.h"
#include "server/core/tenants/tenant_policy.h"

namespace xcache {

// Thread-safe.
class TenantLedger {
 private:
  struct Account;

 public:
  // `steady_ms`: milliseconds of a clock that is never set; empty: the
  // system's.
  explicit TenantLedger(std::function<int64_t()> steady_ms = {});
  ~TenantLedger();

  // In place of those before. What is held stays held, and counts against the
  // new limits.
  void SetPolicies(const TenantPolicies& policies) XC_EXCLUDES(mu_);

  // 1 of a tenant that no policy names.
  int64_t WeightOf(std::string_view tenant) const XC_EXCLUDES(mu_);
  // Whether there may be anybody to share with.
  bool has_several() const XC_EXCLUDES(mu_);

  // What a tenant was given. Given back when it goes. May outlive the ledger;
  // one thread at a time.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept = default;
    Hold& operator=(Hold&& other) noexcept {
      std::swap(account_, other.account_);
      std::swap(limit_, other.limit_);
      std::swap(amount_, other.amount_);
      return *this;
    }
    ~Hold();

    // Of kTokensPerMinute: so many of them, or all that are left, are used up
    // now, and count for a minute.
    void Spend(int64_t n);

   private:
    friend class TenantLedger;
    Hold(std::shared_ptr<Account> account, TenantLimit limit, int64_t amount)
        : account_(std::move(account)), limit_(limit), amount_(amount) {}
    std::shared_ptr<Account> account_;
    TenantLimit limit_{};
    int64_t amount_ = 0;
  };

  // `beside`: what the tenant has of it that nobody holds here (sessions that
  // are stored). RESOURCE_EXHAUSTED says when to try again where time helps.
  absl::StatusOr<Hold> Take(std::string_view tenant, TenantLimit limit,
                            int64_t amount, int64_t beside = 0)
      XC_EXCLUDES(mu_);

  // Of each limit that there is: what is held, or was used in the last minute,
  // and how often it refused.
  struct Use {
    std::string tenant;
    TenantLimit limit{};
    int64_t most = 0;
    int64_t used = 0;
    uint64_t refusals = 0;
  };
  std::vector<Use> uses() const XC_EXCLUDES(mu_);

 private:
  struct Account {
    explicit Account(std::function<int64_t()> clock)
        : steady_ms(std::move(clock)) {}
    const std::function<int64_t()> steady_ms;
    Mutex mu;
    TenantPolicy policy XC_GUARDED_BY(mu);
    std::array<int64_t, kNumTenantLimits> held XC_GUARDED_BY(mu){};
    std::array<uint64_t, kNumTenantLimits> refusals XC_GUARDED_BY(mu){};
    MinuteWindow spent XC_GUARDED_BY(mu);
  };

  std::shared_ptr<Account> AccountOf(std::string_view tenant) const
      XC_EXCLUDES(mu_);

  const std::function<int64_t()> steady_ms_;
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<Account>, std::less<>> accounts_
      XC_GUARDED_BY(mu_);
};

using TenantHold = TenantLedger::Hold;

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_TENANTS_TENANT_LEDGER_H_
