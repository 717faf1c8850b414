// Which remat policy a session is to have (engine/engine.h): what operators and
// callers say, and how a manifest keeps it.
#ifndef XCACHE_SERVER_CORE_REMAT_CHOICE_H_
#define XCACHE_SERVER_CORE_REMAT_CHOICE_H_

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace xcache {

enum class RematChoice {
  kAuto,  // what is measured to decode faster; decided by the first turn
  kResume,
  kStep,
};

// "auto", "resume" or "step".
std::string_view RematChoiceName(RematChoice choice);
std::optional<RematChoice> ParseRematChoice(std::string_view name);
RematChoice ChoiceOf(RematPolicy policy);

// A manifest's setting of that name (SessionRecord::settings).
using SessionSettings = std::vector<std::pair<std::string, std::string>>;
inline constexpr std::string_view kRematSetting = "remat";
// Nothing: there is none, as in older manifests, or none that we know.
std::optional<RematChoice> RematOf(const SessionSettings& settings);
void SetRemat(RematChoice choice, SessionSettings* settings);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_REMAT_CHOICE_H_
