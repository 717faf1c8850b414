// Where a code lies in a packed tile (engine/kernels/pack_bits.h), as functions
// that host and device compile alike: the host tests prove the arithmetic that
// the kernels run.
#ifndef XCACHE_ENGINE_CUDA_PACKED_TILE_H_
#define XCACHE_ENGINE_CUDA_PACKED_TILE_H_

#include <cstdint>

#include "engine/cuda/device_math.h"

namespace xcache::cuda {

// A tile of codes [num_values, num_groups] of `bits` bits each.
struct TileShape {
  int num_values = 0;
  int num_groups = 0;
  int bits = 0;  // 1 .. 8
};

// Bytes of one bit plane.
XC_HOST_DEVICE inline int64_t PlaneBytes(const TileShape& t) {
  return static_cast<int64_t>((t.num_values + 7) / 8) * t.num_groups;
}

// The eight values from 8 * octet on, of one group: their codes, in the bytes
// of the result, value 8 * octet in the lowest. A thread that owns (octet,
// group) reads `bits` bytes; neighbouring groups read neighbouring bytes.
XC_HOST_DEVICE inline uint64_t CodesOfOctet(const uint8_t* packed,
                                            const TileShape& t, int octet,
                                            int group) {
  const uint8_t* byte =
      packed + static_cast<int64_t>(octet) * t.num_groups + group;
  const int64_t plane = PlaneBytes(t);
  uint64_t codes = 0;
  for (int bit = 0; bit < t.bits; ++bit, byte += plane) {
    // Spreads the byte's eight bits to the lowest bits of eight bytes: the
    // multiplication makes seven shifted copies that do not overlap in the
    // bits kept.
    const uint64_t low = (*byte & 0x7fu) * 0x0002040810204081ull;
    const uint64_t spread = (low & 0x0001010101010101ull) |
                            (static_cast<uint64_t>(*byte >> 7) << 56);
    codes |= spread << bit;
  }
  return codes;
}

XC_HOST_DEVICE inline int CodeOf(uint64_t codes, int value_in_octet) {
  return static_cast<int>((codes >> (8 * value_in_octet)) & 0xff);
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_PACKED_TILE_H_
