// Layouts: ggml's block_q4_0 and its like, as its documentation of the GGUF
// tensor types gives them. Multi-byte fields are little-endian.
#include "engine/cpu/gguf_blocks.h"

#include <cmath>
#include <cstring>

namespace xcache {
namespace {

float HalfToFloat(uint16_t h) {
  const int exponent = (h >> 10) & 31;
  const int mantissa = h & 1023;
  float value;
  if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else if (exponent == 31) {
    value = mantissa == 0 ? INFINITY : NAN;
  } else {
    value = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return (h & 0x8000) ? -value : value;
}

float ReadHalf(const uint8_t* p) {
  return HalfToFloat(static_cast<uint16_t>(p[0] | p[1] << 8));
}

// 16 bytes: elements 0..15 in the low nibbles, 16..31 in the high ones.
void Nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = qs[i] & 15;
    codes[i + 16] = qs[i] >> 4;
  }
}

// The fifth bits, element i's in bit i.
void AddHighBits(const uint8_t* qh, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) {
    codes[i] =
        static_cast<uint8_t>(codes[i] | ((qh[i / 8] >> (i % 8)) & 1) << 4);
  }
}

// Six-bit scale and minimum of sub-block `j` of 8, packed into 12 bytes.
void ScaleMinK4(int j, const uint8_t* s, int* scale, int* min) {
  if (j < 4) {
    *scale = s[j] & 63;
    *min = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
  }
}

// Q4_K {d, dmin, scales[12], qs[128]}, Q5_K {d, dmin, scales[12], qh[32],
// qs[128]}: sub-block j of 32 has the low nibbles of qs[32 (j/2) ...] where j
// is even, else the high ones; its fifth bits are bit j of qh[0..31].
void ReadK45(const uint8_t* super, int j, bool five, WeightBlock* out) {
  ScaleMinK4(j, super + 4, &out->scales[0], &out->mins[0]);
  out->d = ReadHalf(super);
  out->m = -ReadHalf(super + 2);
  const uint8_t* qh = super + 16;
  const uint8_t* qs = super + (five ? 48 : 16) + 32 * (j / 2);
  for (int i = 0; i < 32; ++i) {
    int code = j % 2 == 0 ? qs[i] & 15 : qs[i] >> 4;
    if (five) code |= ((qh[i] >> j) & 1) << 4;
    out->codes[i] = static_cast<uint8_t>(code);
  }
}

// Q6_K {ql[128], qh[64], scales[16], d}: each half of 128 elements has 64 bytes
// of ql and 32 of qh; quarter q of it takes the low (q < 2) or high nibbles of
// ql[32 (q % 2) ...] and bits 2q, 2q+1 of qh; a scale for 16 elements.
void ReadQ6K(const uint8_t* super, int j, WeightBlock* out) {
  const int half = j / 4, quarter = j % 4;
  const uint8_t* ql = super + 64 * half + 32 * (quarter % 2);
  const uint8_t* qh = super + 128 + 32 * half;
  const auto* scales = reinterpret_cast<const int8_t*>(super + 192 + 2 * j);
  out->d = ReadHalf(super + 208);
  out->scales[0] = scales[0];
  out->scales[1] = scales[1];
  for (int i = 0; i < 32; ++i) {
    const int low = quarter < 2 ? ql[i] & 15 : ql[i] >> 4;
    out->codes[i] =
        static_cast<uint8_t>(low | ((qh[i] >> (2 * quarter)) & 3) << 4);
  }
}

// Q2_K {scales[16], qs[64], d, dmin}, Q3_K {hmask[32], qs[64], scales[12], d}:
// sub-block j of 32 has bit pair j % 4 of qs[32 (j/4) ...], and of Q3_K bit j
// of hmask[0..31]; a scale for 16 elements.
void AddPairs(const uint8_t* qs, int j, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) {
    codes[i] = qs[32 * (j / 4) + i] >> (2 * (j % 4)) & 3;
  }
}

void ReadQ2K(const uint8_t* super, int j, WeightBlock* out) {
  out->d = ReadHalf(super + 80);
  out->m = -ReadHalf(super + 82);
  for (int i = 0; i < 2; ++i) {
    out->scales[i] = super[2 * j + i] & 15;
    out->mins[i] = super[2 * j + i] >> 4;
  }
  AddPairs(super + 16, j, out->codes);
}

void ReadQ3K(const uint8_t* super, int j, WeightBlock* out) {
  const uint8_t* scales = super + 96;
  out->d = ReadHalf(super + 108);
  for (int i = 0; i < 2; ++i) {
    const int s = 2 * j + i;
    out->scales[i] = ((scales[s % 8] >> (s / 8 * 4) & 15) |
                      (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4) -
                     32;
  }
  AddPairs(super + 32, j, out->codes);
  for (int i = 0; i < 32; ++i) {
    out->codes[i] =
        static_cast<uint8_t>(out->codes[i] | (super[i] >> j & 1) << 2);
  }
}

// IQ4_XS {d, scales_h, scales_l[4], qs[128]}.
void ReadIq4Xs(const uint8_t* super, int j, WeightBlock* out) {
  const int high = super[2] | super[3] << 8;
  out->d = ReadHalf(super);
  out->scales[0] =
      ((super[4 + j / 2] >> (j % 2 * 4) & 15) | (high >> (2 * j) & 3) << 4) -
      32;
  Nibbles(super + 8 + 16 * j, out->codes);
}

}  // namespace

std::optional<QuantFormat> PackedFormatOf(GgufType type) {
  switch (type) {
    case GgufType::kQ4_0:
      return QuantFormat{.bits = 4, .offset = 8};
    case GgufType::kQ4_1:
      return QuantFormat{.bits = 4, .has_min = true};
    case GgufType::kQ5_0:
      return QuantFormat{.bits = 5, .offset = 16};
    case GgufType::kQ5_1:
      return QuantFormat{.bits = 5, .has_min = true};
    case GgufType::kQ8_0:
      return QuantFormat{.bits = 8, .offset = 128};
    case GgufType::kQ4_K:
      return QuantFormat{
          .bits = 4, .has_min = true, .factors = QuantFactors::kOf32};
    case GgufType::kQ5_K:
      return QuantFormat{
          .bits = 5, .has_min = true, .factors = QuantFactors::kOf32};
    case GgufType::kQ6_K:
      return QuantFormat{
          .bits = 6, .offset = 32, .factors = QuantFactors::kOf16};
    case GgufType::kQ2_K:
      return QuantFormat{
          .bits = 2, .has_min = true, .factors = QuantFactors::kOf16};
    case GgufType::kQ3_K:
      return QuantFormat{
          .bits = 3, .offset = 4, .factors = QuantFactors::kOf16};
    case GgufType::kIQ4_NL:
      return QuantFormat{.bits = 4, .iq4 = true};
    case GgufType::kIQ4_XS:
      return QuantFormat{
          .bits = 4, .factors = QuantFactors::kOf32, .iq4 = true};
    case GgufType::kF32:
    case GgufType::kF16:
    case GgufType::kBF16:
      return std::nullopt;
  }
  return std::nullopt;
}

void ReadWeightBlock(GgufType type, const uint8_t* row, int block,
                     WeightBlock* out) {
  out->m = 0.0f;
  switch (type) {
    case GgufType::kQ4_0: {
      const uint8_t* p = row + 18 * static_cast<int64_t>(block);
      out->d = ReadHalf(p);
      Nibbles(p + 2, out->codes);
      return;
    }
    case GgufType::kQ4_1: {
      const uint8_t* p = row + 20 * static_cast<int64_t>(block);
      out->d = ReadHalf(p);
      out->m = ReadHalf(p + 2);
      Nibbles(p + 4, out->codes);
      return;
    }
    case GgufType::kQ5_0: {
      const uint8_t* p = row + 22 * static_cast<int64_t>(block);
      out->d = ReadHalf(p);
      Nibbles(p + 6, out->codes);
      AddHighBits(p + 2, out->codes);
      return;
    }
    case GgufType::kQ5_1: {
      const uint8_t* p = row + 24 * static_cast<int64_t>(block);
      out->d = ReadHalf(p);
      out->m = ReadHalf(p + 2);
      Nibbles(p + 8, out->codes);
      AddHighBits(p + 4, out->codes);
      return;
    }
    case GgufType::kQ8_0: {
      const uint8_t* p = row + 34 * static_cast<int64_t>(block);
      out->d = ReadHalf(p);
      // int8 + 128 as uint8: the sign bit flips.
      for (int i = 0; i < 32; ++i) out->codes[i] = p[2 + i] ^ 0x80;
      return;
    }
    case GgufType::kQ4_K:
      ReadK45(row + 144 * static_cast<int64_t>(block / 8), block % 8, false,
              out);
      return;
    case GgufType::kQ5_K:
      ReadK45(row + 176 * static_cast<int64_t>(block / 8), block % 8, true,
              out);
      return;
    case GgufType::kQ6_K:
      ReadQ6K(row + 210 * static_cast<int64_t>(block / 8), block % 8, out);
      return;
    case GgufType::kQ2_K:
      ReadQ2K(row + 84 * static_cast<int64_t>(block / 8), block % 8, out);
      return;
    case GgufType::kQ3_K:
      ReadQ3K(row + 110 * static_cast<int64_t>(block / 8), block % 8, out);
      return;
    case GgufType::kIQ4_NL: {
      const uint8_t* p = row + 18 * static_cast<int64_t>(block);
      out->d = ReadHalf(p);
      Nibbles(p + 2, out->codes);
      return;
    }
    case GgufType::kIQ4_XS:
      ReadIq4Xs(row + 136 * static_cast<int64_t>(block / 8), block % 8, out);
      return;
    case GgufType::kF32:
    case GgufType::kF16:
    case GgufType::kBF16:
      return;
  }
}

}  // namespace xcache
