// Structured logging: one line an event, `message key=value ...`, on stderr.
//   XC_LOG_INFO("model loaded", "path={} load_ms={}", path, ms);
#ifndef XCACHE_ENGINE_BASE_LOG_H_
#define XCACHE_ENGINE_BASE_LOG_H_

#include <string>
#include <string_view>

#include "spdlog/spdlog.h"

namespace xcache {

// Sets up the process's logger. `level` is one of trace, debug, info, warn,
// error, off; returns false (and changes nothing) for any other.
bool InitLogging(std::string_view level);

// A value as logfmt writes it: quoted, with escapes, where it needs to be.
std::string LogValue(std::string_view value);

}  // namespace xcache

#define XC_LOG_(level, event, fmt, ...)                     \
  ::spdlog::log(level, "{} " fmt, event __VA_OPT__(, ) __VA_ARGS__)
#define XC_LOG_DEBUG(event, ...) XC_LOG_(::spdlog::level::debug, event, __VA_ARGS__)
#define XC_LOG_INFO(event, ...) XC_LOG_(::spdlog::level::info, event, __VA_ARGS__)
#define XC_LOG_WARN(event, ...) XC_LOG_(::spdlog::level::warn, event, __VA_ARGS__)
#define XC_LOG_ERROR(event, ...) XC_LOG_(::spdlog::level::err, event, __VA_ARGS__)

#endif  // XCACHE_ENGINE_BASE_LOG_H_
