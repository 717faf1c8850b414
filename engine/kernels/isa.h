// Which instruction set the kernels use, chosen once at start.
#ifndef XCACHE_ENGINE_KERNELS_ISA_H_
#define XCACHE_ENGINE_KERNELS_ISA_H_

#include <string_view>

#include "absl/status/statusor.h"

namespace xcache {

enum class Isa {
  kRef,     // portable C++, the oracle of the tests
  kAvx2,    // AVX2 + FMA + F16C
  kAvx512,  // AVX-512 F/BW/DQ/VL + VNNI
};

std::string_view IsaName(Isa isa);
// Whether this machine can run it.
bool IsaSupported(Isa isa);
// The best supported one, or what XCACHE_FORCE_ISA says. INVALID_ARGUMENT for
// an unknown name, FAILED_PRECONDITION for one that this machine cannot run.
absl::StatusOr<Isa> ChooseIsa(std::string_view forced);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_ISA_H_
