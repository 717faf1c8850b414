// Operations on one row: norm, activation, sum, RoPE, FP16. Any length, any
// alignment. Unless said otherwise `out` may be the input, else they must not
// overlap. The same bits on every instruction set.
#ifndef XCACHE_ENGINE_KERNELS_ROW_OPS_H_
#define XCACHE_ENGINE_KERNELS_ROW_OPS_H_

#include <cstdint>

namespace xcache {

// rms = sqrt(sum(x^2) / n + eps), u = x * (1 / rms), out = u * gain. Returns
// rms. A null `gain` gives the unit form; `out` and `unit` may be null. The sum
// runs in 16 partials, element i in partial i % 16, that are then added in
// halves: i with i + 8, i + 4, i + 2, i + 1.
using RmsNormFn = float (*)(const float* x, const float* gain, int n, float eps,
                            float* out, float* unit);

// out = gate / (1 + exp(-gate)) * up
using SiluMulFn = void (*)(const float* gate, const float* up, int n,
                           float* out);

// The same with gelu(gate), its tangent form.
using GeluMulFn = SiluMulFn;

// out = a + b
using AddFn = void (*)(const float* a, const float* b, int n, float* out);

// Which two elements of a head are turned together.
enum class RopeOrder {
  kInterleaved,  // 2i, 2i + 1
  kHalves,       // i, i + rope_dim / 2
};
// Turns pair i of each head by the angle whose cosine and sine are cos[i],
// sin[i], in place: (x, y) -> (fma(x, c, -(y * s)), fma(y, c, x * s)). Elements
// from rope_dim (even) on stay.
using RopeFn = void (*)(float* x, int num_heads, int head_dim, int rope_dim,
                        const float* cos, const float* sin, RopeOrder order);

// Rounds half to even; overflow is infinity; a NaN stays a (quiet) NaN.
using ToF16Fn = void (*)(const float* x, int n, uint16_t* out);
// Exact.
using FromF16Fn = void (*)(const uint16_t* x, int n, float* out);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_ROW_OPS_H_
