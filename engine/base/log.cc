#include "engine/base/log.h"

#include <algorithm>

#include "nlohmann/json.hpp"
#include "spdlog/sinks/stdout_color_sinks.h"

namespace xcache {
namespace {

// What would end a value, or steer a terminal.
bool NeedsQuotes(char c) {
  return (c >= 0 && c <= ' ') || c == 0x7f || c == '=' || c == '"' || c == '\\';
}

bool IsNumber(std::string_view value) {
  return !value.empty() &&
         (value.front() == '-' ||
          (value.front() >= '0' && value.front() <= '9')) &&
         nlohmann::json::accept(value);
}

}  // namespace

bool InitLogging(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") return false;
  static const bool installed = [] {
    spdlog::set_default_logger(spdlog::stderr_color_mt("xcache"));
    return true;
  }();
  (void)installed;
  spdlog::default_logger()->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %^%l%$ %v",
                                        spdlog::pattern_time_type::utc);
  spdlog::set_level(parsed);
  return true;
}

std::string LogValue(std::string_view value) {
  const bool plain = !value.empty() &&
                     std::none_of(value.begin(), value.end(), NeedsQuotes) &&
                     !IsNumber(value);
  if (plain) return std::string(value);
  std::string quoted = "\"";
  for (char c : value) {
    switch (c) {
      case '"': quoted += "\\\""; break;
      case '\\': quoted += "\\\\"; break;
      case '\n': quoted += "\\n"; break;
      case '\r': quoted += "\\r"; break;
      case '\t': quoted += "\\t"; break;
      default:
        quoted.push_back((c >= 0 && c < ' ') || c == 0x7f ? '?' : c);
    }
  }
  quoted.push_back('"');
  return quoted;
}

}  // namespace xcache
