// Values as operators write them: sizes, durations, addresses.
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/config.h"

namespace xcache {
namespace {

absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }

// "12.5GiB" -> 12.5 and "GiB". False where it does not start with a number.
bool SplitNumber(std::string_view text, double* number, std::string* unit) {
  const absl::string_view stripped = absl::StripAsciiWhitespace(ToAbsl(text));
  size_t end = 0;
  while (end < stripped.size() &&
         (absl::ascii_isdigit(static_cast<unsigned char>(stripped[end])) ||
          stripped[end] == '.')) {
    ++end;
  }
  if (end == 0 || !absl::SimpleAtod(stripped.substr(0, end), number)) {
    return false;
  }
  *unit =
      absl::AsciiStrToLower(absl::StripAsciiWhitespace(stripped.substr(end)));
  return true;
}

}  // namespace

absl::Status FlagError(std::string_view flag, std::string_view takes,
                       std::string_view value) {
  return absl::InvalidArgumentError(absl::StrCat(
      ToAbsl(flag), " takes ", ToAbsl(takes), ", not \"", ToAbsl(value), "\""));
}

absl::StatusOr<uint64_t> ParseBytes(std::string_view text) {
  double number = 0;
  std::string unit;
  if (!SplitNumber(text, &number, &unit)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ToAbsl(text), "\" is not a size"));
  }
  static constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1},         {"b", 1},        {"k", 0x1p10},   {"kib", 0x1p10},
      {"kb", 1e3},     {"m", 0x1p20},   {"mib", 0x1p20}, {"mb", 1e6},
      {"g", 0x1p30},   {"gib", 0x1p30}, {"gb", 1e9},     {"t", 0x1p40},
      {"tib", 0x1p40}, {"tb", 1e12},
  };
  for (const auto& [name, factor] : kUnits) {
    if (unit != name) continue;
    // Up: a little is not none, which may mean no limit.
    const double bytes = std::ceil(number * factor);
    // 2^53: every whole number below it is exact as a double.
    if (!(bytes < 0x1p53)) break;
    return static_cast<uint64_t>(bytes);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", ToAbsl(text), "\" is not a size"));
}

absl::StatusOr<std::chrono::seconds> ParseDuration(std::string_view text) {
  double number = 0;
  std::string unit;
  if (SplitNumber(text, &number, &unit)) {
    static constexpr std::pair<std::string_view, double> kUnits[] = {
        {"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    for (const auto& [name, factor] : kUnits) {
      if (unit != name) continue;
      // Up: a little is not none, which means never.
      const double seconds = std::ceil(number * factor);
      // A hundred years: what a time stamp in any unit still holds.
      if (!(seconds <= 36525.0 * 86400.0)) break;
      return std::chrono::seconds(static_cast<int64_t>(seconds));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", ToAbsl(text), "\" is not a duration"));
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view text) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ToAbsl(text), "\" is not host:port"));
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return bad();
  HostPort out;
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad();
  }
  if (host.empty() || host.find_first_of("[]/ ,") != std::string_view::npos ||
      port.empty() || port.size() > 5 ||
      port.find_first_not_of("0123456789") != std::string_view::npos ||
      !absl::SimpleAtoi(ToAbsl(port), &out.port) || out.port > 65535) {
    return bad();
  }
  out.host = std::string(host);
  return out;
}

bool IsLoopback(std::string_view host) {
  if (host == "localhost" || host == "::1") return true;
  // The whole of 127.0.0.0/8, and nothing that only starts like it.
  return absl::StartsWith(ToAbsl(host), "127.") &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

}  // namespace xcache
