#include "engine/xcache/transform/symbol_coder.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/little_endian.h"

namespace xcache {
namespace {

// Bytes of the words, then the states that the decoder starts with.
constexpr size_t kStatesAt = 4;
constexpr size_t kCountAt = kStatesAt + 4 * kRansLanes;  // of corrections
constexpr size_t kCorrectionsAt = kCountAt + 2;
// A correction's layer and its rows' levels.
constexpr size_t kCorrectionBytes = 2 + kRansLanes;
// The tables of corrections are those of the middle activity.
constexpr uint8_t kCorrectionTable =
    kNumActivities / 2 * static_cast<uint8_t>(kNumMagnitudes);

// A class is the symbol class - 2, so that the commonest is 0.
constexpr int kClassBias = kNumSteps / 2;

absl::Status Damaged(std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("payload: symbols: ", std::string(what)));
}

// Escaped values in Exp-Golomb codes of order 4, then a sign: the first
// magnitudes that tables leave out are about as many as 16.
constexpr uint32_t kGolombBase = 16;
constexpr int kGolombBits = 5;  // of kGolombBase
constexpr int kMaxMagnitude = 32767;

class EscapeWriter {
 public:
  void Add(int value) {
    const uint32_t code =
        static_cast<uint32_t>(std::abs(value)) - 1 + kGolombBase;
    const auto bits = static_cast<int>(std::bit_width(code));
    for (int i = kGolombBits; i < bits; ++i) Bit(0);
    for (int i = bits - 1; i >= 0; --i) Bit(code >> i & 1u);
    Bit(value < 0 ? 1 : 0);
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  void Bit(uint32_t bit) {
    if (used_ == 0) bytes_.push_back(0);
    bytes_.back() |= static_cast<uint8_t>(bit << used_);
    used_ = (used_ + 1) % 8;
  }

  std::vector<uint8_t> bytes_;
  int used_ = 0;  // bits of the last byte
};

class EscapeReader {
 public:
  explicit EscapeReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  // 0: there is no value, or one out of range.
  int Next() {
    int bits = kGolombBits;
    while (!Bit()) {
      if (failed_ || ++bits > 16) return 0;
    }
    uint32_t code = 1;
    for (int i = 1; i < bits; ++i) code = code << 1 | (Bit() ? 1u : 0u);
    const bool negative = Bit();
    const int magnitude =
        static_cast<int>(code) + 1 - static_cast<int>(kGolombBase);
    if (failed_ || magnitude > kMaxMagnitude) return 0;
    return negative ? -magnitude : magnitude;
  }
  // Whether all was read but for bits of 0 that fill the last byte.
  bool AtEnd() const {
    if (failed_ || (at_ + 7) / 8 != bytes_.size()) return false;
    return at_ % 8 == 0 || bytes_.back() >> (at_ % 8) == 0;
  }

 private:
  bool Bit() {
    if (at_ / 8 >= bytes_.size()) {
      failed_ = true;
      return false;
    }
    const bool bit = (bytes_[at_ / 8] >> (at_ % 8) & 1) != 0;
    ++at_;
    return bit;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;  // in bits
  bool failed_ = false;
};

// Symbols with their places in their tables, in the order of the decoder.
class RansEncoder {
 public:
  explicit RansEncoder(const SymbolTables& tables) : tables_(tables) {}

  void Reserve(size_t symbols) { ranges_.reserve(symbols); }
  void Add(size_t table, int symbol) {
    ranges_.push_back(tables_.range(table, symbol));
  }

  // Encodes what was added, the last symbol first.
  void Finish(std::span<const LayerCorrection> corrections,
              std::vector<uint8_t>* out) const {
    std::array<uint32_t, kRansLanes> states;
    states.fill(kRansLowest);
    std::vector<uint16_t> words;  // the last first
    for (size_t i = ranges_.size(); i-- > 0;) {
      uint32_t& x = states[i % kRansLanes];
      const uint32_t frequency = ranges_[i].frequency;
      if (x >= uint64_t{frequency} << (32 - kRansBits)) {
        words.push_back(static_cast<uint16_t>(x));
        x >>= 16;
      }
      x = (x / frequency << kRansBits) + x % frequency + ranges_[i].first;
    }
    const size_t at = out->size();
    const size_t words_at =
        kCorrectionsAt + corrections.size() * kCorrectionBytes;
    out->resize(at + words_at + 2 * words.size());
    uint8_t* to = out->data() + at;
    StoreLe32(to, static_cast<uint32_t>(2 * words.size()));
    for (size_t lane = 0; lane < kRansLanes; ++lane) {
      StoreLe32(to + kStatesAt + 4 * lane, states[lane]);
    }
    StoreLe16(to + kCountAt, static_cast<uint16_t>(corrections.size()));
    for (size_t i = 0; i < corrections.size(); ++i) {
      uint8_t* correction = to + kCorrectionsAt + i * kCorrectionBytes;
      StoreLe16(correction, static_cast<uint16_t>(corrections[i].layer));
      std::copy(corrections[i].levels.begin(), corrections[i].levels.end(),
                correction + 2);
    }
    to += words_at;
    for (auto word = words.rbegin(); word != words.rend(); ++word, to += 2) {
      StoreLe16(to, *word);
    }
  }

 private:
  const SymbolTables& tables_;
  std::vector<SymbolTables::Range> ranges_;
};

// The lanes of a correction: class 0 and a level, or uncoded.
struct CorrectionLanes {
  explicit CorrectionLanes(const LayerCorrection& of) {
    tables[0] = kCorrectionTable;
    tables[kUncodedClass] = kZeroTable;
    for (size_t lane = 0; lane < kRansLanes; ++lane) {
      const bool coded = of.levels[lane] != kNoCorrection;
      classes[lane] = coded ? 0 : kUncodedClass;
      offsets[lane] = coded ? of.levels[lane] : 0;
    }
  }
  std::array<uint8_t, kRansClasses> tables{};
  std::array<uint32_t, kRansLanes> classes{}, offsets{};
};

// Which layers and rows are corrected, from `bytes`.
absl::Status ReadCorrections(std::span<const uint8_t> bytes,
                             CorrectionShape shape, int first_lane,
                             std::vector<LayerCorrection>* corrections) {
  const size_t count = bytes.size() / kCorrectionBytes;
  corrections->resize(count);
  uint32_t least = 1;
  for (size_t i = 0; i < count; ++i) {
    LayerCorrection& of = (*corrections)[i];
    const uint8_t* from = &bytes[i * kCorrectionBytes];
    of.layer = LoadLe16(from);
    if (of.layer < least || of.layer >= shape.num_layers) {
      return Damaged("corrections are out of order");
    }
    least = of.layer + 1;
    std::copy_n(from + 2, kRansLanes, of.levels.begin());
    for (size_t lane = 0; lane < kRansLanes; ++lane) {
      const bool may_be = lane >= static_cast<size_t>(first_lane) &&
                          of.levels[lane] < kNumMagnitudes;
      if (of.levels[lane] != kNoCorrection && !may_be) {
        return Damaged("a correction's level is out of range");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

void EncodeSymbols(const SymbolTables& tables,
                   std::span<const ContextModel> models, int first_lane,
                   const BlockSymbols& symbols, std::vector<uint8_t>* out) {
  RansEncoder encoder(tables);
  size_t count = kRansLanes;
  for (const auto& group : symbols.groups) count += group.size();
  for (const auto& of : symbols.corrections) count += of.values.size();
  encoder.Reserve(count);
  EscapeWriter escapes;
  const auto add = [&](size_t table, int value) {
    if (tables.Holds(table, value)) {
      encoder.Add(table, value);
    } else {
      encoder.Add(table, kEscapeSymbol);
      escapes.Add(value);
    }
  };
  for (int lane = 0; lane < kRansLanes; ++lane) {
    if (lane < first_lane) {
      encoder.Add(kZeroTable, 0);
    } else {
      encoder.Add(kStepTable,
                  static_cast<int>(symbols.classes[static_cast<size_t>(lane)]) -
                      kClassBias);
    }
  }
  for (size_t g = 0; g < models.size(); ++g) {
    const ContextModel& model = models[g];
    const int16_t* values = symbols.groups[g].data();
    ContextModel::Walk walk(model, symbols.classes.data());
    for (int chunk = 0; chunk < model.num_chunks(); ++chunk) {
      const int16_t* first = values;
      for (int c = 0; c < model.chunk_channels(chunk); ++c) {
        const uint8_t* row = model.tables(chunk) + c * kRansClasses;
        for (size_t lane = 0; lane < kRansLanes; ++lane) {
          add(row[symbols.classes[lane]] + walk.offsets()[lane], *values++);
        }
      }
      walk.Advance(first);
    }
  }
  for (const LayerCorrection& correction : symbols.corrections) {
    const CorrectionLanes lanes(correction);
    for (size_t i = 0; i < correction.values.size(); ++i) {
      const size_t lane = i % kRansLanes;
      add(lanes.tables[lanes.classes[lane]] + lanes.offsets[lane],
          correction.values[i]);
    }
  }
  encoder.Finish(symbols.corrections, out);
  out->insert(out->end(), escapes.bytes().begin(), escapes.bytes().end());
}

absl::Status DecodeSymbols(const SymbolTables& tables,
                           std::span<const ContextModel> models,
                           CorrectionShape corrections, int first_lane,
                           const CodecKernels& kernels,
                           std::span<const uint8_t> bytes,
                           BlockSymbols* symbols) {
  if (bytes.size() < kCorrectionsAt) return Damaged("truncated");
  const size_t correction_bytes =
      LoadLe16(bytes.data() + kCountAt) * kCorrectionBytes;
  if (correction_bytes > bytes.size() - kCorrectionsAt) {
    return Damaged("truncated");
  }
  XC_RETURN_IF_ERROR(
      ReadCorrections(bytes.subspan(kCorrectionsAt, correction_bytes),
                      corrections, first_lane, &symbols->corrections));
  const size_t words_at = kCorrectionsAt + correction_bytes;
  const size_t num_word_bytes = LoadLe32(bytes.data());
  if (num_word_bytes % 2 != 0 || num_word_bytes > bytes.size() - words_at) {
    return Damaged(absl::StrCat("expected at most ", bytes.size() - words_at,
                                " bytes of words, found ", num_word_bytes));
  }
  // A copy with room behind it for what a chunk may take beyond the end.
  std::vector<uint8_t> words(num_word_bytes + kChunkChannels * kRansRoundBytes);
  std::copy_n(bytes.data() + words_at, num_word_bytes, words.data());
  EscapeReader escapes(bytes.subspan(words_at + num_word_bytes));
  const uint8_t* const end = words.data() + num_word_bytes;

  std::array<uint32_t, kRansLanes> states, uncoded, none{};
  for (size_t lane = 0; lane < kRansLanes; ++lane) {
    states[lane] = LoadLe32(bytes.data() + kStatesAt + 4 * lane);
    if (states[lane] < kRansLowest) return Damaged("a state is too low");
    uncoded[lane] = lane < static_cast<size_t>(first_lane) ? kUncodedClass : 0;
  }
  RansDecodeArgs args;
  args.slots = tables.slots();
  args.states = states.data();

  // The step classes, by a round of two tables.
  std::array<uint8_t, kRansClasses> class_tables{};
  class_tables[0] = kStepTable;
  class_tables[kUncodedClass] = kZeroTable;
  std::array<int16_t, kRansLanes> classes;
  args.tables = class_tables.data();
  args.classes = uncoded.data();
  args.offsets = none.data();
  args.num_rounds = 1;
  args.words = words.data();
  args.symbols = classes.data();
  args.words = kernels.rans_decode(args);
  for (size_t lane = 0; lane < kRansLanes; ++lane) {
    const int step = classes[lane] + kClassBias;
    if (uncoded[lane] == kUncodedClass) {
      symbols->classes[lane] = kUncodedClass;
    } else if (step >= 0 && step < kNumSteps) {
      symbols->classes[lane] = static_cast<uint32_t>(step);
    } else {
      return Damaged("a step class is out of range");
    }
  }

  // Decodes a chunk, escapes too; args.symbols and args.words go on.
  const auto decode = [&]() -> absl::Status {
    if (args.words > end) return Damaged("they end too early");
    args.words = kernels.rans_decode(args);
    const std::span<int16_t> decoded(
        args.symbols, static_cast<size_t>(args.num_rounds) * kRansLanes);
    for (int16_t& symbol : decoded) {
      if (symbol != kEscapeSymbol) continue;
      symbol = static_cast<int16_t>(escapes.Next());
      if (symbol == 0) return Damaged("an escape is not a value");
    }
    args.symbols += decoded.size();
    return absl::OkStatus();
  };

  args.classes = symbols->classes.data();
  symbols->groups.resize(models.size());
  for (size_t g = 0; g < models.size(); ++g) {
    const ContextModel& model = models[g];
    std::vector<int16_t>& group = symbols->groups[g];
    group.resize(static_cast<size_t>(model.num_channels()) * kRansLanes);
    args.symbols = group.data();
    ContextModel::Walk walk(model, symbols->classes.data());
    for (int chunk = 0; chunk < model.num_chunks(); ++chunk) {
      args.tables = model.tables(chunk);
      args.offsets = walk.offsets();
      args.num_rounds = model.chunk_channels(chunk);
      const int16_t* first = args.symbols;
      XC_RETURN_IF_ERROR(decode());
      walk.Advance(first);
    }
  }
  for (LayerCorrection& correction : symbols->corrections) {
    const CorrectionLanes lanes(correction);
    std::vector<uint8_t> rounds;
    for (int c = 0; c < kChunkChannels; ++c) {
      rounds.insert(rounds.end(), lanes.tables.begin(), lanes.tables.end());
    }
    correction.values.resize(size_t{corrections.latents} * kRansLanes);
    args.symbols = correction.values.data();
    args.tables = rounds.data();
    args.classes = lanes.classes.data();
    args.offsets = lanes.offsets.data();
    for (uint32_t at = 0; at < corrections.latents; at += kChunkChannels) {
      args.num_rounds = static_cast<int>(
          std::min<uint32_t>(kChunkChannels, corrections.latents - at));
      XC_RETURN_IF_ERROR(decode());
    }
  }
  if (args.words != end) return Damaged("they do not end where words do");
  if (!escapes.AtEnd()) return Damaged("they do not end where escapes do");
  for (uint32_t state : states) {
    if (state != kRansLowest) return Damaged("a state does not end its stream");
  }
  return absl::OkStatus();
}

}  // namespace xcache
