// row_ops_simd.h for this instruction set; see there.
// The order of these includes matters.
// clang-format off
#include "engine/kernels/simd_avx512.h"
#include "engine/kernels/simd_math.h"
#include "engine/kernels/row_ops_simd.h"
// clang-format on

namespace xcache {

void AddRowOpsAvx512(Kernels* table) { SetRowOps(table); }

}  // namespace xcache
