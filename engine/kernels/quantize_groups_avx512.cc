// quantize_groups_simd.h for this instruction set; see there.
namespace xcache {
namespace {
constexpr int kLanes = 16;
}  // namespace
}  // namespace xcache

#include "engine/kernels/quantize_groups_simd.h"

namespace xcache {

void AddQuantizeGroupsAvx512(CodecKernels* table) { SetQuantizeGroups(table); }

}  // namespace xcache
