#include "server/core/sessions/remat_setting.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace xcache {

absl::StatusOr<RematPolicy> ParseRematPolicy(std::string_view name) {
  for (RematPolicy policy : {RematPolicy::kResume, RematPolicy::kStep}) {
    if (name == RematPolicyName(policy)) return policy;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("remat is resume or step, not '", std::string(name), "'"));
}

std::optional<RematPolicy> RematOf(const SessionSettings& settings) {
  for (const auto& [name, value] : settings) {
    if (name != kRematSetting) continue;
    if (value == "auto") return RematPolicy::kResume;
    const absl::StatusOr<RematPolicy> policy = ParseRematPolicy(value);
    return policy.ok() ? std::optional(*policy) : std::nullopt;
  }
  return std::nullopt;
}

void SetRemat(RematPolicy policy, SessionSettings* settings) {
  const std::string value(RematPolicyName(policy));
  for (auto& [name, old] : *settings) {
    if (name == kRematSetting) {
      old = value;
      return;
    }
  }
  settings->emplace_back(kRematSetting, value);
}

}  // namespace xcache
