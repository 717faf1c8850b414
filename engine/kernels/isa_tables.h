// Makers of the tables, one for each instruction set; and the parts that they
// are put together from. Only kernels.cc and the kernels' own files use this.
#ifndef XCACHE_ENGINE_KERNELS_ISA_TABLES_H_
#define XCACHE_ENGINE_KERNELS_ISA_TABLES_H_

#include "engine/kernels/kernels.h"

namespace xcache {

// Each of these sets its op's entries of the table.
void AddQuantMatmulRef(Kernels* table);
void AddFloatMatmulRef(Kernels* table);
void AddRowOpsRef(Kernels* table);
void AddAttentionRef(Kernels* table);

void AddQuantMatmulAvx2(Kernels* table);
void AddFloatMatmulAvx2(Kernels* table);
void AddRowOpsAvx2(Kernels* table);
void AddAttentionAvx2(Kernels* table);

void AddQuantMatmulAvx512(Kernels* table);
void AddFloatMatmulAvx512(Kernels* table);
void AddRowOpsAvx512(Kernels* table);
void AddAttentionAvx512(Kernels* table);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_ISA_TABLES_H_
