// The log as JSON: one object a line, with the keys that the text has
// (server/LOGS.md). Made of the text's lines, so that there is one way to log.
#ifndef XCACHE_ENGINE_BASE_JSON_LOG_H_
#define XCACHE_ENGINE_BASE_JSON_LOG_H_

#include <string>
#include <string_view>

namespace xcache {

// From now on the process's log is JSON. REQUIRES: after InitLogging().
void LogAsJson();

// `line`, "event key=value ..." as XC_LOG_INFO makes it, as an object of one
// line: "time", "level", "event", then the line's keys. A value that stands
// without quotes and is a number is a number, any other a string. Whatever the
// bytes, this is JSON, and ASCII.
std::string JsonLogLine(std::string_view time, std::string_view level,
                        std::string_view line);

// Now, as log lines have it: UTC with milliseconds.
std::string LogTimeNow();

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_JSON_LOG_H_
