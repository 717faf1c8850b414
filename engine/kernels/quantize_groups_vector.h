// Vectors of kLanes 32-bit lanes as GCC and clang write them, and how the
// quantizer's kernels load and store them. The includer defines kLanes first.
// Lanes are independent and nothing here is fused, so the width changes no bit.
#ifndef XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_VECTOR_H_
#define XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_VECTOR_H_

#include <cstdint>
#include <cstring>

#define XC_LANES_INLINE __attribute__((always_inline)) inline

namespace xcache {
namespace {

typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));
typedef uint8_t U8 __attribute__((vector_size(kLanes)));

XC_LANES_INLINE F32 Set(float x) { return x - F32{}; }
XC_LANES_INLINE I32 SetInt(int32_t x) { return x - I32{}; }
XC_LANES_INLINE I32 AsInt(F32 x) { return reinterpret_cast<I32>(x); }
XC_LANES_INLINE F32 AsFloat(I32 x) { return reinterpret_cast<F32>(x); }

XC_LANES_INLINE F32 Load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
XC_LANES_INLINE void Store(F32 v, float* p) { std::memcpy(p, &v, sizeof(v)); }
XC_LANES_INLINE I32 LoadBytes(const uint8_t* p) {
  U8 v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, I32);
}
XC_LANES_INLINE void StoreBytes(I32 v, uint8_t* p, int n) {
  const U8 bytes = __builtin_convertvector(v, U8);
  if (n == kLanes) {
    std::memcpy(p, &bytes, sizeof(bytes));
  } else {
    std::memcpy(p, &bytes, static_cast<size_t>(n));
  }
}
XC_LANES_INLINE void StoreShorts(I32 v, uint16_t* p, int n) {
  const U16 shorts = __builtin_convertvector(v, U16);
  std::memcpy(p, &shorts, 2 * static_cast<size_t>(n));
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANTIZE_GROUPS_VECTOR_H_
