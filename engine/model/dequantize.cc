// Rows of quantized tensors as FP32: the plain reading of ggml's block formats.
// Slow and exact; engines have kernels of their own.
#include <bit>
#include <cstring>

#include "engine/model/model.h"

namespace xcache {
namespace {

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float HalfToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) |
                              (mantissa << 13));
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(Load<uint16_t>(p)); }

// The four-bit formats keep elements 0-15 of a block of 32 in the low nibbles
// and 16-31 in the high ones. `fifth_bits`: bit i belongs to element i.
template <typename Fn>
void ForNibbles(const uint8_t* nibbles, uint32_t fifth_bits, float* out,
                const Fn& value_of) {
  for (uint32_t j = 0; j < 16; ++j) {
    const uint32_t low = (fifth_bits >> j) & 1u;
    const uint32_t high = (fifth_bits >> (j + 16)) & 1u;
    out[j] = value_of(static_cast<int>((nibbles[j] & 15u) | (low << 4)));
    out[j + 16] = value_of(static_cast<int>((nibbles[j] >> 4) | (high << 4)));
  }
}

void DequantizeQ4_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  ForNibbles(block + 2, 0, out,
             [d](int q) { return static_cast<float>(q - 8) * d; });
}

void DequantizeQ4_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block), m = LoadHalf(block + 2);
  ForNibbles(block + 4, 0, out,
             [d, m](int q) { return static_cast<float>(q) * d + m; });
}

void DequantizeQ5_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  ForNibbles(block + 6, Load<uint32_t>(block + 2), out,
             [d](int q) { return static_cast<float>(q - 16) * d; });
}

void DequantizeQ5_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block), m = LoadHalf(block + 2);
  ForNibbles(block + 8, Load<uint32_t>(block + 4), out,
             [d, m](int q) { return static_cast<float>(q) * d + m; });
}

void DequantizeQ8_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int j = 0; j < 32; ++j) {
    out[j] = static_cast<float>(static_cast<int8_t>(block[2 + j])) * d;
  }
}

// K-quants: 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.
// The first 4 pairs take the low 6 bits of bytes 0-3 (scales) and 4-7 (minima);
// the other 4 have 4 bits in bytes 8-11 and 2 in the tops of bytes 0-7.
void ScaleAndMin(const uint8_t* packed, int i, int* scale, int* min) {
  if (i < 4) {
    *scale = packed[i] & 63;
    *min = packed[i + 4] & 63;
  } else {
    *scale = (packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4);
    *min = (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4);
  }
}

// Q4_K and Q5_K: sub-blocks 2i and 2i+1 share 32 bytes, low and high nibbles;
// `high`, where not null, has bit s of byte j as fifth bit of sub-block s.
void DequantizeKPairs(const uint8_t* block, const uint8_t* high,
                      const uint8_t* nibbles, float* out) {
  const float d = LoadHalf(block), dmin = LoadHalf(block + 2);
  for (int s = 0; s < 8; ++s) {
    int scale = 0, min = 0;
    ScaleAndMin(block + 4, s, &scale, &min);
    const float sub_d = d * static_cast<float>(scale);
    const float sub_min = dmin * static_cast<float>(min);
    const uint8_t* q = nibbles + 32 * (s / 2);
    for (int j = 0; j < 32; ++j) {
      int code = s % 2 == 0 ? q[j] & 15 : q[j] >> 4;
      if (high != nullptr) code |= ((high[j] >> s) & 1) << 4;
      out[32 * s + j] = sub_d * static_cast<float>(code) - sub_min;
    }
  }
}

void DequantizeQ4_K(const uint8_t* block, float* out) {
  DequantizeKPairs(block, nullptr, block + 16, out);
}

void DequantizeQ5_K(const uint8_t* block, float* out) {
  DequantizeKPairs(block, block + 16, block + 48, out);
}

// Two halves of 128: 64 bytes of low nibbles, 32 bytes of bit pairs and 8
// scales each; a scale serves 16 elements.
void DequantizeQ6_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + 64 * half;
    const uint8_t* high = block + 128 + 32 * half;
    const uint8_t* scales = block + 192 + 8 * half;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int j = 0; j < 32; ++j) {
        const int nibbles = low[32 * (quarter % 2) + j];
        const int code = (quarter < 2 ? nibbles & 15 : nibbles >> 4) |
                         (((high[j] >> (2 * quarter)) & 3) << 4);
        const int scale = static_cast<int8_t>(scales[2 * quarter + j / 16]);
        out[128 * half + 32 * quarter + j] =
            d * static_cast<float>(scale) * static_cast<float>(code - 32);
      }
    }
  }
}

// 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum; 64 bytes of
// bit pairs, of each half of 128 elements 32 bytes, pair j its elements 32 j
// ...
void DequantizeQ2_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + 80), dmin = LoadHalf(block + 82);
  for (int i = 0; i < 256; ++i) {
    const int pairs = block[16 + 32 * (i / 128) + i % 32];
    const int code = pairs >> (2 * (i / 32 % 4)) & 3;
    out[i] =
        d * static_cast<float>(block[i / 16] & 15) * static_cast<float>(code) -
        dmin * static_cast<float>(block[i / 16] >> 4);
  }
}

// The same pairs; third bits, of element i bit i / 32 of byte i % 32; a 6-bit
// scale less 32 for 16 elements, low nibbles in 8 bytes, high pairs in 4.
void DequantizeQ3_K(const uint8_t* block, float* out) {
  const uint8_t* scales = block + 96;
  const float d = LoadHalf(block + 108);
  for (int i = 0; i < 256; ++i) {
    const int pairs = block[32 + 32 * (i / 128) + i % 32];
    const int code = (pairs >> (2 * (i / 32 % 4)) & 3) |
                     (block[i % 32] >> (i / 32) & 1) << 2;
    const int s = i / 16;
    const int scale = (scales[s % 8] >> (s / 8 * 4) & 15) |
                      (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4;
    out[i] = d * static_cast<float>(scale - 32) * static_cast<float>(code - 4);
  }
}

// What the codes of IQ4 types stand for (ggml's kvalues_iq4nl).
constexpr float kIq4Values[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};

void DequantizeIQ4_NL(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  ForNibbles(block + 2, 0, out, [d](int q) { return d * kIq4Values[q]; });
}

// A 6-bit scale less 32 for 32 elements: low nibbles in 4 bytes, high pairs in
// a 16-bit word.
void DequantizeIQ4_XS(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const int high = Load<uint16_t>(block + 2);
  for (int s = 0; s < 8; ++s) {
    const int scale =
        (block[4 + s / 2] >> (s % 2 * 4) & 15) | (high >> (2 * s) & 3) << 4;
    const float sub_d = d * static_cast<float>(scale - 32);
    ForNibbles(block + 8 + 16 * s, 0, out + 32 * s,
               [sub_d](int q) { return sub_d * kIq4Values[q]; });
  }
}

using BlockFn = void (*)(const uint8_t* block, float* out);

BlockFn BlockFnOf(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return [](const uint8_t* p, float* out) { *out = Load<float>(p); };
    case GgufType::kF16:
      return [](const uint8_t* p, float* out) { *out = LoadHalf(p); };
    case GgufType::kBF16:
      return [](const uint8_t* p, float* out) {
        *out = std::bit_cast<float>(static_cast<uint32_t>(Load<uint16_t>(p))
                                    << 16);
      };
    case GgufType::kQ4_0:
      return DequantizeQ4_0;
    case GgufType::kQ4_1:
      return DequantizeQ4_1;
    case GgufType::kQ5_0:
      return DequantizeQ5_0;
    case GgufType::kQ5_1:
      return DequantizeQ5_1;
    case GgufType::kQ8_0:
      return DequantizeQ8_0;
    case GgufType::kQ2_K:
      return DequantizeQ2_K;
    case GgufType::kQ3_K:
      return DequantizeQ3_K;
    case GgufType::kQ4_K:
      return DequantizeQ4_K;
    case GgufType::kQ5_K:
      return DequantizeQ5_K;
    case GgufType::kQ6_K:
      return DequantizeQ6_K;
    case GgufType::kIQ4_NL:
      return DequantizeIQ4_NL;
    case GgufType::kIQ4_XS:
      return DequantizeIQ4_XS;
  }
  return nullptr;
}

}  // namespace

void DequantizeRow(const TensorView& tensor, int64_t row, float* out) {
  const GgufTypeInfo info = InfoOf(tensor.type).value();
  const int64_t num_blocks = tensor.cols / info.block_elements;
  const uint8_t* block =
      tensor.bytes.data() + row * num_blocks * info.block_bytes;
  const BlockFn fn = BlockFnOf(tensor.type);
  for (int64_t b = 0; b < num_blocks; ++b) {
    fn(block, out);
    block += info.block_bytes;
    out += info.block_elements;
  }
}

}  // namespace xcache
