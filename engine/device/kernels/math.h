// Scalar arithmetic that host and device compile alike. Every operation is an
// IEEE one, rounded once, and nothing may be contracted (-ffp-contract=off,
// --fmad=false), so both sides give the same bits.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_MATH_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/kernels/exp_coefficients.h"

// CUDA's own headers are for the file to include that launches the kernels,
// before this one.
#if defined(__CUDACC__)
#define XC_HOST_DEVICE __host__ __device__
#else
#define XC_HOST_DEVICE
#endif
// Arrays whose indices are known after unrolling stay in registers.
#if defined(__CUDA_ARCH__)
#define XC_UNROLL _Pragma("unroll")
#else
#define XC_UNROLL
#endif

namespace xcache::cuda {

XC_HOST_DEVICE inline uint32_t BitsOf(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

XC_HOST_DEVICE inline float FloatOf(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

XC_HOST_DEVICE inline float Fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

XC_HOST_DEVICE inline float Sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

XC_HOST_DEVICE inline bool IsFinite(float x) {
  return (BitsOf(x) & 0x7f800000u) != 0x7f800000u;
}

// The functions below mean what those of engine/kernels/scalar_math.h mean, bit
// for bit; tests hold them to it. Only NaNs may be others.

XC_HOST_DEVICE inline float F16ToF32(uint16_t h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#else
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return FloatOf(sign | 0x7f800000u | quiet | mantissa << 13);
  }
  if (exponent == 0) {
    return FloatOf(sign | BitsOf(static_cast<float>(mantissa) * 0x1p-24f));
  }
  return FloatOf(sign | (exponent + 112) << 23 | mantissa << 13);
#endif
}

XC_HOST_DEVICE inline uint16_t F32ToF16(float x) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = BitsOf(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    half = BitsOf(FloatOf(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude + 0xfffu + odd - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
#endif
}

// Two values as FP16, the first in the lower half.
XC_HOST_DEVICE inline uint32_t PackHalves(float low, float high) {
#if defined(__CUDA_ARCH__)
  const __half2 pair = __floats2half2_rn(low, high);
  return __half_as_ushort(__low2half(pair)) |
         static_cast<uint32_t>(__half_as_ushort(__high2half(pair))) << 16;
#else
  return F32ToF16(low) | static_cast<uint32_t>(F32ToF16(high)) << 16;
#endif
}

// Eight of them. REQUIRES: `to` is 16-byte aligned.
XC_HOST_DEVICE inline void StoreOctet(uint16_t* to, const float* values) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint4*>(to) = make_uint4(
      PackHalves(values[0], values[1]), PackHalves(values[2], values[3]),
      PackHalves(values[4], values[5]), PackHalves(values[6], values[7]));
#else
  for (int i = 0; i < 8; ++i) to[i] = F32ToF16(values[i]);
#endif
}

XC_HOST_DEVICE inline float Bf16ToF32(uint16_t h) {
  return FloatOf(static_cast<uint32_t>(h) << 16);
}

XC_HOST_DEVICE inline uint16_t F32ToBf16(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>(bits >> 16 | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Two values as BF16, the first in the lower half.
XC_HOST_DEVICE inline uint32_t PackBf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(__low2bfloat16(pair)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(__high2bfloat16(pair)))
             << 16;
#else
  return F32ToBf16(low) | static_cast<uint32_t>(F32ToBf16(high)) << 16;
#endif
}

// Eight of them. REQUIRES: `to` is 16-byte aligned.
XC_HOST_DEVICE inline void StoreBf16Octet(uint16_t* to, const float* values) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint4*>(to) = make_uint4(
      PackBf16(values[0], values[1]), PackBf16(values[2], values[3]),
      PackBf16(values[4], values[5]), PackBf16(values[6], values[7]));
#else
  for (int i = 0; i < 8; ++i) to[i] = F32ToBf16(values[i]);
#endif
}

XC_HOST_DEVICE inline float Exp2FromParts(float shifted, float r) {
  float p = kExp2C5;
  p = Fma(p, r, kExp2C4);
  p = Fma(p, r, kExp2C3);
  p = Fma(p, r, kExp2C2);
  p = Fma(p, r, kExp2C1);
  p = Fma(p, r, 1.0f);
  return FloatOf(BitsOf(p) + (BitsOf(shifted) << 23));
}

XC_HOST_DEVICE inline float Exp2(float x) {
  if (!(x >= kExp2Min)) return 0.0f;
  const float shifted = x + kRoundMagic;
  const float n = shifted - kRoundMagic;
  return Exp2FromParts(shifted, x - n);
}

XC_HOST_DEVICE inline float Exp(float x) {
  if (!(x >= kExpMin)) return 0.0f;
  x = kExpMax < x ? kExpMax : x;
  const float shifted = Fma(x, kLog2eHigh, kRoundMagic);
  const float n = shifted - kRoundMagic;
  const float r = Fma(x, kLog2eLow, Fma(x, kLog2eHigh, -n));
  return Exp2FromParts(shifted, r);
}

XC_HOST_DEVICE inline float Silu(float x) { return x / (1.0f + Exp(-x)); }

// A value of E4M3: 4 bits of exponent with bias 7, 3 of mantissa. NaN for 0x7f
// and 0xff.
XC_HOST_DEVICE inline float E4m3ToF32(uint8_t bits) {
  const uint32_t exponent = (bits >> 3) & 15u;
  const uint32_t mantissa = bits & 7u;
  if (exponent == 15 && mantissa == 7) return FloatOf(0x7fc00000u);
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const float magnitude =
      exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                    : FloatOf((exponent + 120) << 23 | mantissa << 20);
  return FloatOf(sign | BitsOf(magnitude));
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_MATH_H_
