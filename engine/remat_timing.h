// Measures what FindRematCrossover asks for: one sequence's decode steps under
// both remat policies, at a few numbers of cached tokens, by the engine's real
// kernels. Any engine.
#ifndef XCACHE_ENGINE_REMAT_TIMING_H_
#define XCACHE_ENGINE_REMAT_TIMING_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/remat_crossover.h"

namespace xcache {

struct RematTimingOptions {
  // Seconds since some moment; empty: the steady clock. Asked before and after
  // each step that counts.
  std::function<double()> clock;
  // The most cached tokens. Also measured: a half, a fourth, an eighth.
  int64_t max_tokens = 4096;
  // Steps that count, at each length and under each policy; the fastest of
  // them is taken, since what disturbs a step makes it slower. 1 to 32.
  int repeat = 5;
};

// In order of lengths; fewer, or none, where the context is too short for them.
// What is cached is one sealed block's payload in kMeasuredBlocks places, which
// take turns in a longer sequence, so memory stays small and yet is too much
// for a cache. `engine` is used as by any caller. Errors: the engine's, with
// RESOURCE_EXHAUSTED where it has no room.
inline constexpr int64_t kMeasuredBlocks = 16;
absl::StatusOr<std::vector<StepTime>> MeasureRematSteps(
    Engine& engine, const CodecHandle& codec,
    const RematTimingOptions& options);

}  // namespace xcache

#endif  // XCACHE_ENGINE_REMAT_TIMING_H_
