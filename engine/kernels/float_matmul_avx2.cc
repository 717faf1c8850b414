// float_matmul_simd.h for this instruction set; see there.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx2.h"
#include "engine/kernels/float_matmul_simd.h"
// clang-format on

namespace xcache {

void AddFloatMatmulAvx2(Kernels* table) { SetFloatMatmul(table); }

}  // namespace xcache
