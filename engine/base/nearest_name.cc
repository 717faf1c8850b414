#include "engine/base/nearest_name.h"

#include <algorithm>
#include <cstddef>

namespace xcache {
namespace {

// Optimal string alignment (Damerau 1964): Levenshtein's distance with swaps
// of neighbours. Names are short, so the whole table is kept.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1,
                                     std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1,
                          d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string NearestName(std::string_view typed,
                        const std::vector<std::string>& names) {
  constexpr size_t kLongest = 100;
  if (typed.empty() || typed.size() > kLongest) return "";
  // A third of what was typed may be wrong.
  size_t best = std::max<size_t>(1, typed.size() / 3) + 1;
  std::string nearest;
  for (const std::string& name : names) {
    if (name.size() > kLongest) continue;
    const bool begun = typed.size() >= 3 && name.starts_with(typed);
    const size_t distance = begun ? 1 : Distance(typed, name);
    if (distance < best) {
      best = distance;
      nearest = name;
    }
  }
  return nearest;
}

std::string DidYouMean(std::string_view typed,
                       const std::vector<std::string>& names) {
  const std::string nearest = NearestName(typed, names);
  return nearest.empty() ? "" : " (did you mean " + nearest + "?)";
}

}  // namespace xcache
