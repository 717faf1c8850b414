// Scalar arithmetic of the reference kernels: the meaning of each operation
// that the vector paths must reproduce bit by bit.
#ifndef XCACHE_ENGINE_KERNELS_SCALAR_MATH_H_
#define XCACHE_ENGINE_KERNELS_SCALAR_MATH_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "engine/kernels/exp_coefficients.h"

namespace xcache {

// 2^(x) from n + kRoundMagic and r = x - n.
inline float Exp2FromParts(float shifted, float r) {
  float p = kExp2C5;
  p = std::fma(p, r, kExp2C4);
  p = std::fma(p, r, kExp2C3);
  p = std::fma(p, r, kExp2C2);
  p = std::fma(p, r, kExp2C1);
  p = std::fma(p, r, 1.0f);
  // The low bits of `shifted` are n; the higher ones leave by the shift.
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) +
                              (std::bit_cast<uint32_t>(shifted) << 23));
}

// 2^x for x <= 127; 0 below kExp2Min.
inline float Exp2(float x) {
  if (!(x >= kExp2Min)) return 0.0f;
  const float shifted = x + kRoundMagic;
  const float n = shifted - kRoundMagic;
  return Exp2FromParts(shifted, x - n);
}

inline float Exp(float x) {
  if (!(x >= kExpMin)) return 0.0f;
  x = kExpMax < x ? kExpMax : x;
  const float shifted = std::fma(x, kLog2eHigh, kRoundMagic);
  const float n = shifted - kRoundMagic;
  const float r = std::fma(x, kLog2eLow, std::fma(x, kLog2eHigh, -n));
  return Exp2FromParts(shifted, r);
}

inline float Silu(float x) { return x / (1.0f + Exp(-x)); }

inline float Gelu(float x) {
  return x / (1.0f + Exp(-(x * std::fma(x * x, kGeluCubic, kGeluLinear))));
}

inline float F16ToF32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 31) {  // infinity; a NaN becomes quiet
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | quiet | mantissa << 13);
  }
  if (exponent == 0) {  // zero or denormal: mantissa * 2^-24, exact
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline uint16_t F32ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    // The sum's last place is 2^-24, so the addition rounds, half to even.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(sum) - 0x3f000000u;
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude + 0xfffu + odd - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

inline float Bf16ToF32(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

inline uint16_t F32ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>(bits >> 16 | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The sum of 16 partials, in halves.
inline float SumPartials(const float* partials) {
  float s[16];
  for (int i = 0; i < 16; ++i) s[i] = partials[i];
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  }
  return s[0];
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_SCALAR_MATH_H_
