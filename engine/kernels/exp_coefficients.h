// Constants of the exponential that every instruction set evaluates the same
// way. 2^x: n = round_half_even(x), r = x - n in [-1/2, 1/2],
// 2^x = 2^n (1 + r (c1 + r (c2 + r (c3 + r (c4 + r c5))))), one fma a step.
// The coefficients are the weighted least-squares (Lawson) minimax fit of the
// relative error over [-1/2, 1/2] with the constant held at 1, so that 2^0 is
// exactly 1; the fit is off by 9.2e-8, the whole by less than 2.5e-7.
#ifndef XCACHE_ENGINE_KERNELS_EXP_COEFFICIENTS_H_
#define XCACHE_ENGINE_KERNELS_EXP_COEFFICIENTS_H_

namespace xcache {

inline constexpr float kExp2C1 = 0.693147f;
inline constexpr float kExp2C2 = 0.24022242f;
inline constexpr float kExp2C3 = 0.055507336f;
inline constexpr float kExp2C4 = 0.009671513f;
inline constexpr float kExp2C5 = 0.0013264727f;

// 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer, which then stands in
// the low bits of the sum.
inline constexpr float kRoundMagic = 12582912.0f;
// Below this, 2^x would near the denormals: it is zero instead.
inline constexpr float kExp2Min = -125.0f;

// log2(e) as the sum of two floats, so that e^x keeps its precision for large
// |x|.
inline constexpr float kLog2eHigh = 0x1.715476p+0f;
inline constexpr float kLog2eLow = 0x1.4ae0c0p-26f;
// e^x is zero below, and held at e^88 above: 2^127 is the last power of two.
inline constexpr float kExpMin = -86.5f;
inline constexpr float kExpMax = 88.0f;

// GELU by the tangent (Hendrycks, Gimpel, "GELUs", 2016): (1 + tanh(y)) / 2 is
// 1 / (1 + e^-2y), and 2y is x times this much and that much x^2.
inline constexpr float kGeluLinear = 1.5957691f;   // 2 sqrt(2 / pi)
inline constexpr float kGeluCubic = 0.071354816f;  // 0.044715 times that

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_EXP_COEFFICIENTS_H_
