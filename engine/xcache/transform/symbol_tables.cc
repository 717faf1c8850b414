#include "engine/xcache/transform/symbol_tables.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace xcache {

SymbolFrequencies FrequenciesOf(std::span<const double> counts) {
  double sum = 0.0;
  for (double count : counts) sum += count;
  SymbolFrequencies out;
  if (counts.empty() || !(sum > 0.0)) {
    // Nothing is known: 0 and an escape, half each.
    out.slots = {kRansTotal / 2};
    out.escape = kRansTotal / 2;
    return out;
  }
  // The last magnitude whose two signs would get a slot each.
  size_t last = std::min<size_t>(counts.size() - 1, kMaxTableMagnitude);
  while (last > 0 && counts[last] * kRansTotal < 2.0 * sum) --last;
  double escaped = 0.0;
  for (size_t v = last + 1; v < counts.size(); ++v) escaped += counts[v];
  uint32_t used = 0;
  const auto slots_of = [&](double count, double signs) {
    const double slots = std::floor(count * kRansTotal / sum / signs + 0.5);
    return static_cast<uint32_t>(std::clamp(slots, 1.0, kRansTotal - 1.0));
  };
  const uint32_t escape = slots_of(escaped, 1.0);
  used += escape;
  std::vector<uint32_t> slots(last + 1);
  for (size_t v = 1; v <= last; ++v) {
    slots[v] = slots_of(counts[v], 2.0);
    used += 2 * slots[v];
  }
  // What rounding took is given or taken where it weighs least: by 0 where that
  // leaves it a slot, else by the largest.
  while (used > kRansTotal - 1) {
    const auto most = std::max_element(slots.begin() + 1, slots.end());
    --*most;
    used -= 2;
  }
  slots[0] = kRansTotal - used;
  for (uint32_t n : slots) out.slots.push_back(static_cast<uint16_t>(n));
  out.escape = static_cast<uint16_t>(escape);
  return out;
}

absl::StatusOr<SymbolTables> SymbolTables::Create(
    std::span<const SymbolFrequencies> tables) {
  SymbolTables out;
  out.slots_.resize(tables.size() * kRansTotal);
  out.ranges_.resize(tables.size() * 256);
  for (size_t t = 0; t < tables.size(); ++t) {
    const SymbolFrequencies& table = tables[t];
    if (table.slots.empty() || table.slots.size() > kMaxTableMagnitude + 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "symbol table ", t, ": expected 1 to ", kMaxTableMagnitude + 1,
          " magnitudes, found ", table.slots.size()));
    }
    uint32_t at = 0;
    const auto add = [&](int symbol, uint32_t frequency) {
      if (frequency == 0 || at + frequency > kRansTotal) {
        at = kRansTotal + 1;
        return;
      }
      out.ranges_[t * 256 + static_cast<uint8_t>(symbol)] = {
          static_cast<uint16_t>(at), static_cast<uint16_t>(frequency)};
      for (uint32_t i = 0; i < frequency; ++i) {
        out.slots_[t * kRansTotal + at + i] =
            MakeRansSlot(at + i, at, frequency, symbol);
      }
      at += frequency;
    };
    add(0, table.slots[0]);
    for (size_t v = 1; v < table.slots.size(); ++v) {
      add(static_cast<int>(v), table.slots[v]);
      add(-static_cast<int>(v), table.slots[v]);
    }
    if (table.escape > 0) add(kEscapeSymbol, table.escape);
    if (at != kRansTotal) {
      return absl::InvalidArgumentError(
          absl::StrCat("symbol table ", t, ": expected ", kRansTotal,
                       " slots in all, at least one for each symbol"));
    }
  }
  return out;
}

}  // namespace xcache
