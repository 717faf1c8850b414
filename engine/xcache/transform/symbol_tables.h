// The static tables of the entropy coder of xquant-tc: how often each symbol is
// expected, in 2^12 slots, and what the coder and the decoder look up. Integers
// only. Which table a symbol is coded with: context_model.h.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_TABLES_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_TABLES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/rans.h"

namespace xcache {

// Says that a value follows among the escapes: more than its table holds.
inline constexpr int kEscapeSymbol = -128;
// The largest magnitude that a table may hold.
inline constexpr int kMaxTableMagnitude = 127;

// One table. The slots of 0, then of 1, -1, 2, -2, ..., then of the escape.
struct SymbolFrequencies {
  // Slots of 0, and of each of v and -v for v = 1, 2, ...
  std::vector<uint16_t> slots;
  // Slots of the escape: what is left of 2^12, at least 1 unless 0 has all.
  uint16_t escape = 0;

  bool operator==(const SymbolFrequencies&) const = default;
};

// The frequencies nearest to `counts` [magnitudes]: how often 0 and how often
// either of v and -v was seen, or is expected to be. Magnitudes that would get
// less than a slot are left to the escape. Deterministic.
SymbolFrequencies FrequenciesOf(std::span<const double> counts);

// All tables of a codec.
class SymbolTables {
 public:
  // INVALID_ARGUMENT: a table's slots are not 2^12 in all, or one is zero.
  static absl::StatusOr<SymbolTables> Create(
      std::span<const SymbolFrequencies> tables);

  size_t size() const { return slots_.size() / kRansTotal; }
  // [tables][2^12], for RansDecodeFn.
  const RansSlot* slots() const { return slots_.data(); }

  struct Range {
    uint16_t first = 0;
    uint16_t frequency = 0;  // 0: not in the table
  };
  // Where `symbol` is in a table; kEscapeSymbol is one too.
  Range range(size_t table, int symbol) const {
    return ranges_[table * 256 + static_cast<uint8_t>(symbol)];
  }
  // Whether a value is coded as a symbol, not as an escape.
  bool Holds(size_t table, int value) const {
    return value >= -kMaxTableMagnitude && value <= kMaxTableMagnitude &&
           range(table, value).frequency > 0;
  }

 private:
  std::vector<RansSlot> slots_;
  std::vector<Range> ranges_;  // [tables][256]
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_SYMBOL_TABLES_H_
