// The row operations over sixteen lanes. Include after simd_*.h, simd_math.h.
#ifndef XCACHE_ENGINE_KERNELS_ROW_OPS_SIMD_H_
#define XCACHE_ENGINE_KERNELS_ROW_OPS_SIMD_H_

#include "engine/kernels/isa_tables.h"

namespace xcache {
namespace {

float RmsNorm(const float* x, const float* gain, int n, float eps, float* out,
              float* unit) {
  const int whole = n / 16 * 16;
  const int rest = n - whole;
  F sums = Zero();
  for (int i = 0; i < whole; i += 16) {
    const F v = Load(x + i);
    sums = Fma(v, v, sums);
  }
  if (rest != 0) {
    const F v = LoadN(x + whole, rest);
    sums = Fma(v, v, sums);
  }
  const float mean = SumLanes(sums) / static_cast<float>(n);
  const float rms = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
  const F inverse = Set1(1.0f / rms);
  for (int i = 0; i < whole; i += 16) {
    const F u = Mul(Load(x + i), inverse);
    if (out != nullptr) {
      Store(gain == nullptr ? u : Mul(u, Load(gain + i)), out + i);
    }
    if (unit != nullptr) Store(u, unit + i);
  }
  if (rest != 0) {
    const F u = Mul(LoadN(x + whole, rest), inverse);
    if (out != nullptr) {
      StoreN(gain == nullptr ? u : Mul(u, LoadN(gain + whole, rest)),
             out + whole, rest);
    }
    if (unit != nullptr) StoreN(u, unit + whole, rest);
  }
  return rms;
}

template <F (*kActivation)(F)>
void ActivationMul(const float* gate, const float* up, int n, float* out) {
  const int whole = n / 16 * 16;
  for (int i = 0; i < whole; i += 16) {
    Store(Mul(kActivation(Load(gate + i)), Load(up + i)), out + i);
  }
  if (const int rest = n - whole; rest != 0) {
    StoreN(Mul(kActivation(LoadN(gate + whole, rest)), LoadN(up + whole, rest)),
           out + whole, rest);
  }
}

void AddRows(const float* a, const float* b, int n, float* out) {
  const int whole = n / 16 * 16;
  for (int i = 0; i < whole; i += 16) {
    Store(Add(Load(a + i), Load(b + i)), out + i);
  }
  if (const int rest = n - whole; rest != 0) {
    StoreN(Add(LoadN(a + whole, rest), LoadN(b + whole, rest)), out + whole,
           rest);
  }
}

XCACHE_INLINE void TurnPair(float* first, float* second, float cos, float sin) {
  const float a = *first;
  const float b = *second;
  *first = __builtin_fmaf(a, cos, -(b * sin));
  *second = __builtin_fmaf(b, cos, a * sin);
}

void Rope(float* x, int num_heads, int head_dim, int rope_dim, const float* cos,
          const float* sin, RopeOrder order) {
  const int half = rope_dim / 2;
  for (int head = 0; head < num_heads; ++head, x += head_dim) {
    int i = 0;
    if (order == RopeOrder::kInterleaved) {
      for (; i + 8 <= half; i += 8) {
        const F v = Load(x + 2 * i);
        const F s = NegateEven(LoadPairs(sin + i));
        Store(Fma(v, LoadPairs(cos + i), Mul(SwapPairs(v), s)), x + 2 * i);
      }
      for (; i < half; ++i) {
        TurnPair(x + 2 * i, x + 2 * i + 1, cos[i], sin[i]);
      }
    } else {
      for (; i + 16 <= half; i += 16) {
        const F a = Load(x + i);
        const F b = Load(x + i + half);
        const F c = Load(cos + i);
        const F s = Load(sin + i);
        Store(FmaNeg(a, c, Mul(b, s)), x + i);
        Store(Fma(b, c, Mul(a, s)), x + i + half);
      }
      for (; i < half; ++i) TurnPair(x + i, x + i + half, cos[i], sin[i]);
    }
  }
}

void ToF16(const float* x, int n, uint16_t* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) StoreF16(Load(x + i), out + i);
  if (i < n) {
    uint16_t last[16];
    StoreF16(LoadN(x + i, n - i), last);
    for (int j = 0; i + j < n; ++j) out[i + j] = last[j];
  }
}

void FromF16(const uint16_t* x, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(LoadF16(x + i), out + i);
  if (i < n) {
    uint16_t last[16] = {};
    for (int j = 0; i + j < n; ++j) last[j] = x[i + j];
    StoreN(LoadF16(last), out + i, n - i);
  }
}

XCACHE_INLINE void SetRowOps(Kernels* table) {
  table->rms_norm = RmsNorm;
  table->silu_mul = ActivationMul<Silu>;
  table->gelu_mul = ActivationMul<Gelu>;
  table->add = AddRows;
  table->rope = Rope;
  table->to_f16 = ToF16;
  table->from_f16 = FromF16;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_ROW_OPS_SIMD_H_
