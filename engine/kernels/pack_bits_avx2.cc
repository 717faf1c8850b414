// pack_bits_simd.h for this instruction set; see there.
namespace xcache {
namespace {
constexpr int kLanes = 8;
}  // namespace
}  // namespace xcache

#include "engine/kernels/pack_bits_simd.h"

namespace xcache {

void AddPackBitsAvx2(CodecKernels* table) { SetPackBits(table); }

}  // namespace xcache
