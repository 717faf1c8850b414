// Where a code lies in a packed tile (engine/kernels/pack_bits.h), as functions
// that host and device compile alike: the host tests prove the arithmetic that
// the kernels run.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_PACKED_TILE_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_PACKED_TILE_H_

#include <cstdint>

#include "engine/device/kernels/math.h"

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
    // Spreads four bits to the lowest bits of four bytes: the multiplication
    // makes copies at distances of 7, which do not overlap in the bits kept.
    const uint32_t low = (*byte & 15u) * 0x00204081u & 0x01010101u;
    const uint32_t high = (*byte >> 4) * 0x00204081u & 0x01010101u;
    codes |= (static_cast<uint64_t>(high) << 32 | low) << bit;
  }
  return codes;
}

XC_HOST_DEVICE inline int CodeOf(uint64_t codes, int value_in_octet) {
  return static_cast<int>((codes >> (8 * value_in_octet)) & 0xff);
}

// The same as FP32, by the low bits of 2^23 + code: conversions are slow.
XC_HOST_DEVICE inline float CodeAsFloat(uint64_t codes, int value_in_octet) {
#if defined(__CUDA_ARCH__)
  const auto half = static_cast<uint32_t>(
      value_in_octet < 4 ? codes & 0xffffffffu : codes >> 32);
  const auto place = static_cast<uint32_t>(value_in_octet) & 3u;
  const uint32_t bits = __byte_perm(half, 0x4b000000u, 0x7440u | place);
#else
  const uint32_t bits =
      0x4b000000u | static_cast<uint32_t>(CodeOf(codes, value_in_octet));
#endif
  return FloatOf(bits) - 0x1p23f;
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_PACKED_TILE_H_
