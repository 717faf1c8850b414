#include "engine/kernels/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know this one.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "?";
}

bool IsaSupported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kRef:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             HasF16c();
    case Isa::kAvx512:
      return IsaSupported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == Isa::kRef;
#endif
}

absl::StatusOr<Isa> ChooseIsa(std::string_view forced) {
  std::string_view source = "the option";
  if (forced.empty()) {
    const char* variable = std::getenv("XCACHE_FORCE_ISA");
    if (variable != nullptr) forced = variable;
    source = "XCACHE_FORCE_ISA";
  }
  if (forced.empty()) {
    if (IsaSupported(Isa::kAvx512)) return Isa::kAvx512;
    return IsaSupported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kRef;
  }
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    const std::string_view name = IsaName(isa);
    if (forced != name) continue;
    if (IsaSupported(isa)) return isa;
    return absl::FailedPreconditionError(absl::StrCat(
        "this machine cannot run the instruction set \"", std::string(name),
        "\" that ", std::string(source), " asks for"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown instruction set \"", std::string(forced), "\" in ",
                   std::string(source), ": expected ref, avx2 or avx512"));
}

}  // namespace xcache
