#include "client/command/text.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace xcache::command {
namespace {

// Code points, which are columns for all but wide and combining characters.
size_t Width(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(),
      [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

}  // namespace

std::string HumanBytes(double bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB",
                                                        "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  const int decimals = unit == 0 || bytes >= 100 ? 0 : 1;
  return absl::StrFormat("%.*f %s", decimals, bytes, kUnits[unit]);
}

std::string HumanCount(uint64_t n) {
  const std::string digits = absl::StrCat(n);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out.push_back(',');
    out.push_back(digits[i]);
  }
  return out;
}

std::string HumanDuration(absl::Duration d) {
  const double ms = absl::ToDoubleMilliseconds(d);
  if (ms < 10) return absl::StrFormat("%.1f ms", ms);
  if (ms < 1000) return absl::StrFormat("%.0f ms", ms);
  if (ms < 120e3) return absl::StrFormat("%.1f s", ms / 1e3);
  return absl::StrFormat("%.0f min", ms / 60e3);
}

std::string HumanAgo(absl::Time then, absl::Time now) {
  const double s = std::max(0.0, absl::ToDoubleSeconds(now - then));
  if (s < 60) return absl::StrFormat("%.0f s ago", s);
  if (s < 3600) return absl::StrFormat("%.0f min ago", s / 60);
  if (s < 2 * 86400) return absl::StrFormat("%.0f h ago", s / 3600);
  return absl::StrFormat("%.0f days ago", s / 86400);
}

std::string ProgressBar(int percent, int width) {
  const int full = std::clamp(percent, 0, 100) * width / 100;
  return absl::StrFormat(
      "[%s%s] %3d %%", std::string(static_cast<size_t>(full), '#'),
      std::string(static_cast<size_t>(width - full), '-'), percent);
}

std::string Printable(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '\n' || c == '\t' || (c >= 0x20 && c != 0x7F)) {
      // U+0080 to U+009F, which some terminals take as escapes, too.
      if (c == 0xC2 && i + 1 < text.size() &&
          static_cast<unsigned char>(text[i + 1]) < 0xA0) {
        ++i;
        continue;
      }
      out.push_back(text[i]);
    }
  }
  return out;
}

std::string OneLine(absl::string_view text) {
  std::string out = Printable(text);
  std::replace(out.begin(), out.end(), '\n', ' ');
  std::replace(out.begin(), out.end(), '\t', ' ');
  return out;
}

std::string Cut(std::string_view text, size_t columns) {
  size_t end = 0;
  for (; end < text.size(); ++end) {
    const bool starts = Width(text.substr(end, 1)) == 1;
    if (starts && columns-- == 0) break;
  }
  return std::string(text.substr(0, end));
}

std::string FoldedTable(
    const std::vector<std::pair<std::string, std::string>>& rows,
    size_t columns) {
  size_t indent = 0;
  for (const auto& [name, text] : rows) {
    indent = std::max(indent, Width(name) + 2);
  }
  // On a terminal too narrow for both columns lines are cut.
  const size_t room = columns > indent ? columns - indent : 1;
  std::string out;
  for (const auto& [name, text] : rows) {
    std::string line = name + std::string(indent - Width(name), ' ');
    size_t used = 0;
    for (std::string_view rest = text; !rest.empty();) {
      const size_t space = rest.find(' ');
      const std::string_view word = rest.substr(0, space);
      rest.remove_prefix(space == std::string_view::npos ? rest.size()
                                                         : space + 1);
      if (used > 0 && used + 1 + Width(word) > room) {
        absl::StrAppend(&out, Cut(line, columns), "\n");
        line = std::string(indent, ' ');
        used = 0;
      }
      if (used > 0) line += ' ';
      line += word;
      used += Width(word) + (used > 0 ? 1 : 0);
    }
    absl::StrAppend(&out, Cut(line, columns), "\n");
  }
  return out;
}

std::string Table(const std::vector<std::vector<std::string>>& rows,
                  const std::vector<size_t>& right) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], Width(row[i]));
    }
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - Width(row[i]), ' ');
      const bool to_right =
          std::find(right.begin(), right.end(), i) != right.end();
      absl::StrAppend(&line, i == 0 ? "" : "  ", to_right ? pad : "", row[i],
                      to_right ? "" : pad);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

}  // namespace xcache::command
