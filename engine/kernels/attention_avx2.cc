// attention_simd.h for this instruction set; see there.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx2.h"
#include "engine/kernels/simd_math.h"
#include "engine/kernels/attention_simd.h"
// clang-format on

namespace xcache {

void AddAttentionAvx2(Kernels* table) { SetAttention(table); }

}  // namespace xcache
