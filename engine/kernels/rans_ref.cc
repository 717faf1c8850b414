// Scalar reference of rans.h.
#include "engine/kernels/codec_kernels.h"

namespace xcache {
namespace {

const uint8_t* RansDecode(const RansDecodeArgs& args) {
  const uint8_t* words = args.words;
  int16_t* out = args.symbols;
  for (int round = 0; round < args.num_rounds; ++round) {
    const uint8_t* tables = args.tables + round * kRansClasses;
    for (int lane = 0; lane < kRansLanes; ++lane) {
      const uint32_t table = tables[args.classes[lane]] + args.offsets[lane];
      uint32_t x = args.states[lane];
      const RansSlot slot = args.slots[table * kRansTotal + x % kRansTotal];
      x = ((slot >> 12) % kRansTotal + 1) * (x >> kRansBits) +
          slot % kRansTotal;
      if (x < kRansLowest) {
        x = x << 16 | words[0] | static_cast<uint32_t>(words[1]) << 8;
        words += 2;
      }
      args.states[lane] = x;
      *out++ = static_cast<int8_t>(slot >> 24);
    }
  }
  return words;
}

}  // namespace

void AddRansRef(CodecKernels* table) { table->rans_decode = RansDecode; }

}  // namespace xcache
