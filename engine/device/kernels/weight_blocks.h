// Weights in GGUF blocks as host and device compile alike: eight neighbouring
// weights at a time, as FP32, the very values that DequantizeRow
// (engine/model/model.h) gives; tests hold them to it bit for bit. Knows one
// row's bytes and nothing of matrices.
//
// A row is units of 256 weights, eight blocks of 32 each (the last unit may
// have fewer): eight of the file's blocks, or one super-block of a K type.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_WEIGHT_BLOCKS_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_WEIGHT_BLOCKS_H_

#include <cstdint>
#include <cstring>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/packed_tile.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

inline constexpr int kUnitWeights = 256;
inline constexpr int kBlockWeights = 32;
inline constexpr int kUnitBlocks = kUnitWeights / kBlockWeights;
inline constexpr int kBlockOctets = kBlockWeights / 8;

XC_HOST_DEVICE constexpr bool IsSuperBlock(WeightType type) {
  return type == WeightType::kQ4_K || type == WeightType::kQ5_K ||
         type == WeightType::kQ6_K;
}
// Bytes of a whole unit.
XC_HOST_DEVICE constexpr int UnitBytes(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return 8 * 18;
    case WeightType::kQ4_1:
      return 8 * 20;
    case WeightType::kQ5_0:
      return 8 * 22;
    case WeightType::kQ5_1:
      return 8 * 24;
    case WeightType::kQ8_0:
      return 8 * 34;
    case WeightType::kQ4_K:
      return 144;
    case WeightType::kQ5_K:
      return 176;
    case WeightType::kQ6_K:
      return 210;
    case WeightType::kBf16:
      break;
  }
  return 0;
}
// Bytes of `weights` weights, whole blocks.
XC_HOST_DEVICE constexpr int64_t WeightBytes(WeightType type, int64_t weights) {
  return weights * UnitBytes(type) / kUnitWeights;
}
// Bytes from a row of a QuantizedMatrix to the next.
XC_HOST_DEVICE constexpr int64_t QuantizedRowBytes(WeightType type, int64_t k) {
  return (WeightBytes(type, k) + 15) / 16 * 16;
}

// Two and eight bytes. REQUIRES: p is 2-byte aligned.
XC_HOST_DEVICE inline uint16_t LoadHalfWord(const uint8_t* p) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const uint16_t*>(p);
#else
  return static_cast<uint16_t>(p[0] | p[1] << 8);
#endif
}
XC_HOST_DEVICE inline uint64_t LoadOctet(const uint8_t* p) {
#if defined(__CUDA_ARCH__)
  const uint32_t low =
      LoadHalfWord(p) | static_cast<uint32_t>(LoadHalfWord(p + 2)) << 16;
  const uint32_t high =
      LoadHalfWord(p + 4) | static_cast<uint32_t>(LoadHalfWord(p + 6)) << 16;
  return static_cast<uint64_t>(high) << 32 | low;
#else
  uint64_t octet;
  std::memcpy(&octet, p, sizeof(octet));
  return octet;
#endif
}

// Bit i of `bits` as bit 4 of byte i.
XC_HOST_DEVICE inline uint64_t FifthBits(uint32_t bits) {
  // As in CodesOfOctet: copies at distances of 7.
  const uint32_t low = (bits & 15u) * 0x00204081u & 0x01010101u;
  const uint32_t high = (bits >> 4 & 15u) * 0x00204081u & 0x01010101u;
  return (static_cast<uint64_t>(high) << 32 | low) << 4;
}

// What codes of a block are multiplied by and what is then added. Of Q6_K they
// are those of 16 weights.
struct WeightScale {
  float scale = 0.0f;
  float min = 0.0f;  // only of types that have one
};

XC_HOST_DEVICE constexpr bool HasMin(WeightType type) {
  return type == WeightType::kQ4_1 || type == WeightType::kQ5_1 ||
         type == WeightType::kQ4_K || type == WeightType::kQ5_K;
}
// What is subtracted from codes before.
XC_HOST_DEVICE constexpr float CodeOffset(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return 8.0f;
    case WeightType::kQ5_0:
      return 16.0f;
    case WeightType::kQ8_0:  // codes are turned from signed bytes
      return 128.0f;
    case WeightType::kQ6_K:
      return 32.0f;
    default:
      return 0.0f;
  }
}

// Of octet `octet`, 0 to 3, of block `block`, 0 to 7, of the unit at `unit`,
// 2-byte aligned.
template <WeightType kType>
XC_HOST_DEVICE inline WeightScale LoadWeightScale(const uint8_t* unit,
                                                  int block, int octet) {
  WeightScale s;
  if constexpr (kType == WeightType::kQ6_K) {
    // d after the 8-bit scales of 16 weights each.
    const int scale = static_cast<int8_t>(unit[192 + 2 * block + octet / 2]);
    s.scale = F16ToF32(LoadHalfWord(unit + 208)) * static_cast<float>(scale);
  } else if constexpr (IsSuperBlock(kType)) {
    // d, dmin, and 12 bytes of scales and minima of 6 bits.
    const uint8_t* packed = unit + 4;
    const int lower = block & 3;
    int scale = packed[lower], min = packed[lower + 4];
    if (block < 4) {
      scale &= 63;
      min &= 63;
    } else {
      const int low = packed[lower + 8];
      scale = (low & 15) | scale >> 6 << 4;
      min = low >> 4 | min >> 6 << 4;
    }
    s.scale = F16ToF32(LoadHalfWord(unit)) * static_cast<float>(scale);
    s.min = -(F16ToF32(LoadHalfWord(unit + 2)) * static_cast<float>(min));
  } else {
    const uint8_t* at = unit + block * (UnitBytes(kType) / kUnitBlocks);
    s.scale = F16ToF32(LoadHalfWord(at));
    if constexpr (HasMin(kType)) s.min = F16ToF32(LoadHalfWord(at + 2));
  }
  return s;
}

// The codes of an octet, one a byte, the first in the lowest.
template <WeightType kType>
XC_HOST_DEVICE inline uint64_t LoadWeightCodes(const uint8_t* unit, int block,
                                               int octet) {
  constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0fu;
  if constexpr (kType == WeightType::kQ6_K) {
    // Two halves of 128: 64 bytes of low nibbles, 32 of bit pairs.
    const int half = block / 4, quarter = block % 4;
    const uint64_t low =
        LoadOctet(unit + 64 * half + 32 * (quarter % 2) + 8 * octet);
    const uint64_t high = LoadOctet(unit + 128 + 32 * half + 8 * octet);
    return (low >> (4 * (quarter / 2)) & kNibbles) |
           (high >> (2 * quarter) & 0x0303030303030303u) << 4;
  } else if constexpr (IsSuperBlock(kType)) {
    // Blocks 2i and 2i + 1 share 32 bytes, low and high nibbles; Q5_K's fifth
    // bits are bit `block` of 32 bytes before.
    constexpr int kCodes = kType == WeightType::kQ5_K ? 48 : 16;
    uint64_t codes = LoadOctet(unit + kCodes + 32 * (block / 2) + 8 * octet) >>
                         (4 * (block % 2)) &
                     kNibbles;
    if constexpr (kType == WeightType::kQ5_K) {
      codes |= (LoadOctet(unit + 16 + 8 * octet) >> block & 0x0101010101010101u)
               << 4;
    }
    return codes;
  } else {
    const uint8_t* at = unit + block * (UnitBytes(kType) / kUnitBlocks) +
                        (HasMin(kType) ? 4 : 2);
    if constexpr (kType == WeightType::kQ8_0) {
      // A signed byte + 128 as unsigned: its sign bit flips.
      return LoadOctet(at + 8 * octet) ^ 0x8080808080808080u;
    } else {
      // Weights 0 to 15 in low nibbles, 16 to 31 in high ones; before them, of
      // the five-bit types, the fifth bits.
      constexpr bool kFive =
          kType == WeightType::kQ5_0 || kType == WeightType::kQ5_1;
      uint64_t codes = LoadOctet(at + (kFive ? 4 : 0) + 8 * (octet % 2)) >>
                           (4 * (octet / 2)) &
                       kNibbles;
      if constexpr (kFive) codes |= FifthBits(at[octet]);
      return codes;
    }
  }
}

// The weights of an octet. The scale must be that octet's.
template <WeightType kType>
XC_HOST_DEVICE inline void WeightsOfOctet(const uint8_t* unit, int block,
                                          int octet, const WeightScale& scale,
                                          float* out) {
  const uint64_t codes = LoadWeightCodes<kType>(unit, block, octet);
  XC_UNROLL
  for (int i = 0; i < 8; ++i) {
    // Exact: whole numbers.
    float value = CodeAsFloat(codes, i);
    if constexpr (CodeOffset(kType) != 0.0f) value = value - CodeOffset(kType);
    value = value * scale.scale;
    if constexpr (HasMin(kType)) value = value + scale.min;
    out[i] = value;
  }
}

// Weights [8 octet, ..) of the row at `row`.
template <WeightType kType>
XC_HOST_DEVICE inline void WeightsOfRow(const uint8_t* row, int octet,
                                        float* out) {
  constexpr int kUnitOctets = kUnitWeights / 8;
  const uint8_t* unit = row + int64_t{octet / kUnitOctets} * UnitBytes(kType);
  const int block = octet % kUnitOctets / kBlockOctets;
  const int in_block = octet % kBlockOctets;
  WeightsOfOctet<kType>(unit, block, in_block,
                        LoadWeightScale<kType>(unit, block, in_block), out);
}
// The same of a type that is known when it runs. REQUIRES: not kBf16.
XC_HOST_DEVICE inline void WeightsOfRow(WeightType type, const uint8_t* row,
                                        int octet, float* out) {
  switch (type) {
    case WeightType::kQ4_0:
      return WeightsOfRow<WeightType::kQ4_0>(row, octet, out);
    case WeightType::kQ4_1:
      return WeightsOfRow<WeightType::kQ4_1>(row, octet, out);
    case WeightType::kQ5_0:
      return WeightsOfRow<WeightType::kQ5_0>(row, octet, out);
    case WeightType::kQ5_1:
      return WeightsOfRow<WeightType::kQ5_1>(row, octet, out);
    case WeightType::kQ8_0:
      return WeightsOfRow<WeightType::kQ8_0>(row, octet, out);
    case WeightType::kQ4_K:
      return WeightsOfRow<WeightType::kQ4_K>(row, octet, out);
    case WeightType::kQ5_K:
      return WeightsOfRow<WeightType::kQ5_K>(row, octet, out);
    case WeightType::kQ6_K:
      return WeightsOfRow<WeightType::kQ6_K>(row, octet, out);
    case WeightType::kBf16:
      return;
  }
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_WEIGHT_BLOCKS_H_
