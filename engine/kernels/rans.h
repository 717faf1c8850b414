// Decoding of 64 interleaved rANS streams, one for each token of a block, with
// a table chosen for every symbol. Integers only: the same values on every
// instruction set. The encoder, which runs backwards, is in engine/xcache.
//
// The method is Duda's range asymmetric numeral systems (arXiv 1311.2540) with
// states of 32 bits in [2^16, 2^32), frequencies that sum to 2^12, and words of
// 16 bits that all lanes take from one stream: in each round every lane decodes
// a symbol, then the lanes whose states fell below 2^16 take a word each, in
// the order of the lanes.
#ifndef XCACHE_ENGINE_KERNELS_RANS_H_
#define XCACHE_ENGINE_KERNELS_RANS_H_

#include <cstddef>
#include <cstdint>

namespace xcache {

inline constexpr int kRansLanes = 64;
inline constexpr int kRansBits = 12;
inline constexpr uint32_t kRansTotal = 1u << kRansBits;
inline constexpr uint32_t kRansLowest = 1u << 16;  // of a state
// What one round may take of the stream.
inline constexpr size_t kRansRoundBytes = 2 * kRansLanes;
// Classes of lanes that a round's tables are chosen by.
inline constexpr int kRansClasses = 8;

// What the low 12 bits of a state stand for. Of a symbol whose slots are
// [first, first + frequency):
//   bits 0-11: slot - first, 12-23: frequency - 1, 24-31: the symbol, an int8
using RansSlot = uint32_t;

inline constexpr RansSlot MakeRansSlot(uint32_t slot, uint32_t first,
                                       uint32_t frequency, int symbol) {
  return (slot - first) | (frequency - 1) << 12 |
         static_cast<uint32_t>(static_cast<uint8_t>(symbol)) << 24;
}

// `num_rounds` rounds. In round r lane l uses table
// tables[r * kRansClasses + classes[l]] + offsets[l].
struct RansDecodeArgs {
  const RansSlot* slots = nullptr;    // [tables][kRansTotal]
  const uint8_t* tables = nullptr;    // [num_rounds][kRansClasses]
  const uint32_t* classes = nullptr;  // [kRansLanes], below kRansClasses
  const uint32_t* offsets = nullptr;  // [kRansLanes]
  int num_rounds = 0;
  uint32_t* states = nullptr;      // [kRansLanes], in and out
  const uint8_t* words = nullptr;  // at least num_rounds * kRansRoundBytes
  int16_t* symbols = nullptr;      // out: [num_rounds][kRansLanes]
};
// Returns where the words end that were taken. Any states give some symbols:
// what is wrong shows when the stream has come to its end.
using RansDecodeFn = const uint8_t* (*)(const RansDecodeArgs& args);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_RANS_H_
