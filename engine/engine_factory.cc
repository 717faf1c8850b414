#include "engine/engine_factory.h"

#include <sched.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/cpu_engine.h"

namespace xcache {
namespace {

constexpr int kMaxThreads = 1024;

// CPUs that this process may run on.
int UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(
    std::shared_ptr<const Model> model, const EngineOptions& options,
    const ProgressFn& progress) {
  if (options.device != "cpu" && options.device != "auto") {
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown device '", options.device, "'; known: cpu, auto"));
  }
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "threads must be in [0, ", kMaxThreads, "], is ", options.num_threads));
  }
  XC_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.isa));
  const int threads =
      options.num_threads > 0 ? options.num_threads : UsableCpus();
  return CpuEngine::Create(std::move(model), isa, threads, options.profile_dir,
                           progress);
}

}  // namespace xcache
