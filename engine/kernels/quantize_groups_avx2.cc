// quantize_groups_simd.h for this instruction set; see there.
namespace xcache {
namespace {
constexpr int kLanes = 8;
}  // namespace
}  // namespace xcache

#include "engine/kernels/quantize_groups_simd.h"

namespace xcache {

void AddQuantizeGroupsAvx2(CodecKernels* table) { SetQuantizeGroups(table); }

}  // namespace xcache
