// Exponential and SiLU over sixteen lanes; the operations of scalar_math.h in
// the same order. Include after simd_avx2.h or simd_avx512.h.
#ifndef XCACHE_ENGINE_KERNELS_SIMD_MATH_H_
#define XCACHE_ENGINE_KERNELS_SIMD_MATH_H_

#include "engine/kernels/exp_coefficients.h"

namespace xcache {
namespace {

XCACHE_INLINE F Exp2FromParts(F shifted, F r) {
  F p = Set1(kExp2C5);
  p = Fma(p, r, Set1(kExp2C4));
  p = Fma(p, r, Set1(kExp2C3));
  p = Fma(p, r, Set1(kExp2C2));
  p = Fma(p, r, Set1(kExp2C1));
  p = Fma(p, r, Set1(1.0f));
  return ScaleByExponent(p, shifted);
}

XCACHE_INLINE F Exp2(F x) {
  const F shifted = Add(x, Set1(kRoundMagic));
  const F n = Sub(shifted, Set1(kRoundMagic));
  return ZeroBelow(x, kExp2Min, Exp2FromParts(shifted, Sub(x, n)));
}

XCACHE_INLINE F Exp(F unbounded) {
  const F x = Min(Set1(kExpMax), unbounded);
  const F shifted = Fma(x, Set1(kLog2eHigh), Set1(kRoundMagic));
  const F n = Sub(shifted, Set1(kRoundMagic));
  const F r = Fma(x, Set1(kLog2eLow), FmaNeg(x, Set1(kLog2eHigh), n));
  return ZeroBelow(x, kExpMin, Exp2FromParts(shifted, r));
}

XCACHE_INLINE F Silu(F x) { return Div(x, Add(Set1(1.0f), Exp(Negate(x)))); }
XCACHE_INLINE F Gelu(F x) {
  const F slope = Fma(Mul(x, x), Set1(kGeluCubic), Set1(kGeluLinear));
  return Div(x, Add(Set1(1.0f), Exp(Negate(Mul(x, slope)))));
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_SIMD_MATH_H_
