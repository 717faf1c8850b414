#include "server/core/remat_choice.h"

namespace xcache {

std::string_view RematChoiceName(RematChoice choice) {
  switch (choice) {
    case RematChoice::kResume:
      return RematPolicyName(RematPolicy::kResume);
    case RematChoice::kStep:
      return RematPolicyName(RematPolicy::kStep);
    case RematChoice::kAuto:
      break;
  }
  return "auto";
}

std::optional<RematChoice> ParseRematChoice(std::string_view name) {
  for (RematChoice choice :
       {RematChoice::kAuto, RematChoice::kResume, RematChoice::kStep}) {
    if (name == RematChoiceName(choice)) return choice;
  }
  return std::nullopt;
}

RematChoice ChoiceOf(RematPolicy policy) {
  return policy == RematPolicy::kStep ? RematChoice::kStep
                                      : RematChoice::kResume;
}

std::optional<RematChoice> RematOf(const SessionSettings& settings) {
  for (const auto& [name, value] : settings) {
    if (name == kRematSetting) return ParseRematChoice(value);
  }
  return std::nullopt;
}

void SetRemat(RematChoice choice, SessionSettings* settings) {
  const std::string value(RematChoiceName(choice));
  for (auto& [name, old] : *settings) {
    if (name == kRematSetting) {
      old = value;
      return;
    }
  }
  settings->emplace_back(kRematSetting, value);
}

}  // namespace xcache
