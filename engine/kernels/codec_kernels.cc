#include "engine/kernels/codec_kernels.h"

namespace xcache {
namespace {

using AddFn = void (*)(CodecKernels* table);

CodecKernels MakeTable(AddFn quantize, AddFn pack, AddFn rans, AddFn matmul) {
  CodecKernels table;
  quantize(&table);
  pack(&table);
  rans(&table);
  matmul(&table);
  return table;
}

}  // namespace

const CodecKernels& GetCodecKernels([[maybe_unused]] Isa isa) {
#if defined(XCACHE_KERNELS_X86)
  if (isa == Isa::kAvx512) {
    static const CodecKernels avx512 =
        MakeTable(AddQuantizeGroupsAvx512, AddPackBitsAvx512, AddRansAvx512,
                  AddIntMatmulAvx512);
    return avx512;
  }
  if (isa == Isa::kAvx2) {
    static const CodecKernels avx2 = MakeTable(
        AddQuantizeGroupsAvx2, AddPackBitsAvx2, AddRansAvx2, AddIntMatmulAvx2);
    return avx2;
  }
#endif
  static const CodecKernels ref = MakeTable(
      AddQuantizeGroupsRef, AddPackBitsRef, AddRansRef, AddIntMatmulRef);
  return ref;
}

}  // namespace xcache
