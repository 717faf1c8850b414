// Scalar reference of the row operations: the oracle of the tests.
#include <cmath>

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/scalar_math.h"

namespace xcache {
namespace {

float RmsNorm(const float* x, const float* gain, int n, float eps, float* out,
              float* unit) {
  float partials[16] = {};
  for (int i = 0; i < n; ++i) {
    partials[i % 16] = std::fma(x[i], x[i], partials[i % 16]);
  }
  const float mean = SumPartials(partials) / static_cast<float>(n);
  const float rms = std::sqrt(mean + eps);
  const float inverse = 1.0f / rms;
  for (int i = 0; i < n; ++i) {
    const float u = x[i] * inverse;
    if (unit != nullptr) unit[i] = u;
    if (out != nullptr) out[i] = gain == nullptr ? u : u * gain[i];
  }
  return rms;
}

void SiluMul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = Silu(gate[i]) * up[i];
}

void GeluMul(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = Gelu(gate[i]) * up[i];
}

void Add(const float* a, const float* b, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

void Rope(float* x, int num_heads, int head_dim, int rope_dim, const float* cos,
          const float* sin, RopeOrder order) {
  const int half = rope_dim / 2;
  const bool interleaved = order == RopeOrder::kInterleaved;
  for (int head = 0; head < num_heads; ++head, x += head_dim) {
    for (int i = 0; i < half; ++i) {
      float& first = x[interleaved ? 2 * i : i];
      float& second = x[interleaved ? 2 * i + 1 : i + half];
      const float a = first;
      const float b = second;
      first = std::fma(a, cos[i], -(b * sin[i]));
      second = std::fma(b, cos[i], a * sin[i]);
    }
  }
}

void ToF16(const float* x, int n, uint16_t* out) {
  for (int i = 0; i < n; ++i) out[i] = F32ToF16(x[i]);
}

void FromF16(const uint16_t* x, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = F16ToF32(x[i]);
}

}  // namespace

void AddRowOpsRef(Kernels* table) {
  table->rms_norm = RmsNorm;
  table->silu_mul = SiluMul;
  table->gelu_mul = GeluMul;
  table->add = Add;
  table->rope = Rope;
  table->to_f16 = ToF16;
  table->from_f16 = FromF16;
}

}  // namespace xcache
