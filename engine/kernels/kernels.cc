#include "engine/kernels/kernels.h"

#include "engine/kernels/isa.h"
#include "engine/kernels/isa_tables.h"

namespace xcache {
namespace {

using AddFns = void (*)(Kernels* table);

Kernels MakeTable(Isa isa, AddFns quant, AddFns dense, AddFns rows,
                  AddFns attention) {
  Kernels table;
  table.isa = isa;
  quant(&table);
  dense(&table);
  rows(&table);
  attention(&table);
  return table;
}

}  // namespace

const Kernels& GetKernels([[maybe_unused]] Isa isa) {
#if defined(XCACHE_KERNELS_X86)
  if (isa == Isa::kAvx512) {
    static const Kernels avx512 =
        MakeTable(Isa::kAvx512, AddQuantMatmulAvx512, AddFloatMatmulAvx512,
                  AddRowOpsAvx512, AddAttentionAvx512);
    return avx512;
  }
  if (isa == Isa::kAvx2) {
    static const Kernels avx2 =
        MakeTable(Isa::kAvx2, AddQuantMatmulAvx2, AddFloatMatmulAvx2,
                  AddRowOpsAvx2, AddAttentionAvx2);
    return avx2;
  }
#endif
  static const Kernels ref =
      MakeTable(Isa::kRef, AddQuantMatmulRef, AddFloatMatmulRef, AddRowOpsRef,
                AddAttentionRef);
  return ref;
}

}  // namespace xcache
