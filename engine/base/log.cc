#include "engine/base/log.h"

#include "spdlog/sinks/stdout_color_sinks.h"

namespace xcache {

bool InitLogging(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") return false;
  static const bool installed = [] {
    auto logger = spdlog::stderr_color_mt("xcache");
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %^%l%$ %v",
                        spdlog::pattern_time_type::utc);
    spdlog::set_default_logger(std::move(logger));
    return true;
  }();
  (void)installed;
  spdlog::set_level(parsed);
  return true;
}

std::string LogValue(std::string_view value) {
  const bool plain =
      !value.empty() &&
      value.find_first_of(" =\"\\\n\r\t") == std::string_view::npos;
  if (plain) return std::string(value);
  std::string quoted = "\"";
  for (char c : value) {
    switch (c) {
      case '"': quoted += "\\\""; break;
      case '\\': quoted += "\\\\"; break;
      case '\n': quoted += "\\n"; break;
      case '\r': quoted += "\\r"; break;
      case '\t': quoted += "\\t"; break;
      default: quoted.push_back(c);
    }
  }
  quoted.push_back('"');
  return quoted;
}

}  // namespace xcache
