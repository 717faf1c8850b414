#include "engine/base/json_log.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/utf8.h"
#include "nlohmann/json.hpp"
#include "spdlog/formatter.h"
#include "spdlog/spdlog.h"

namespace xcache {
namespace {

using Json = nlohmann::ordered_json;

std::string FormatLogTime(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

bool IsKeyByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

// The length of the key that `text` begins with, "key="; 0: it begins with
// none.
size_t KeyLength(std::string_view text) {
  const auto end = std::find_if_not(text.begin(), text.end(), IsKeyByte);
  if (end == text.begin() || end == text.end() || *end != '=') return 0;
  return static_cast<size_t>(end - text.begin());
}

// Takes what stands up to the next space.
std::string_view TakeWord(std::string_view* text) {
  const size_t end = std::min(text->find(' '), text->size());
  const std::string_view word = text->substr(0, end);
  text->remove_prefix(end);
  return word;
}

// Takes a value in quotes, escapes undone: LogValue()'s reverse.
std::string TakeQuoted(std::string_view* text) {
  std::string out;
  size_t at = 1;
  for (; at < text->size() && (*text)[at] != '"'; ++at) {
    char c = (*text)[at];
    if (c == '\\' && at + 1 < text->size()) {
      c = (*text)[++at];
      if (c == 'n') c = '\n';
      if (c == 'r') c = '\r';
      if (c == 't') c = '\t';
    }
    out.push_back(c);
  }
  text->remove_prefix(std::min(at + 1, text->size()));
  return out;
}

Json NumberOrString(std::string_view word) {
  Json number = Json::parse(word, nullptr, /*allow_exceptions=*/false);
  if (number.is_number()) return number;
  return std::string(word);
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message,
              spdlog::memory_buf_t& out) override {
    const auto level = spdlog::level::to_string_view(message.level);
    const std::string line =
        JsonLogLine(FormatLogTime(absl::FromChrono(message.time)),
                    {level.data(), level.size()},
                    {message.payload.data(), message.payload.size()}) +
        "\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

std::string JsonLogLine(std::string_view time, std::string_view level,
                        std::string_view text) {
  const std::string utf8 = ToUtf8(text);
  std::string_view line = utf8;
  Json out = {{"time", time}, {"level", level}, {"event", ""}};
  // What a word that is no key belongs to: the event, and behind a value that
  // should have been in quotes, that value.
  std::string last = "event";
  while (!line.empty()) {
    if (line.front() == ' ') {
      line.remove_prefix(1);
      continue;
    }
    const size_t key_bytes = KeyLength(line);
    if (key_bytes == 0) {
      const std::string_view word = TakeWord(&line);
      Json& value = out[last];
      std::string words =
          value.is_string() ? value.get<std::string>() : value.dump();
      if (!words.empty()) words.push_back(' ');
      value = words.append(word);
      continue;
    }
    std::string key(line.substr(0, key_bytes));
    line.remove_prefix(key_bytes + 1);
    Json value = !line.empty() && line.front() == '"'
                     ? Json(TakeQuoted(&line))
                     : NumberOrString(TakeWord(&line));
    // The first of two stays: nothing that follows takes its place.
    if (!out.contains(key)) {
      out[key] = std::move(value);
      last = std::move(key);
    }
  }
  // In ASCII, so that nothing takes a character for the end of a line.
  return out.dump(-1, ' ', /*ensure_ascii=*/true);
}

std::string LogTimeNow() { return FormatLogTime(absl::Now()); }

void LogAsJson() {
  spdlog::default_logger()->set_formatter(std::make_unique<JsonFormatter>());
}

}  // namespace xcache
