// Which remat policy decodes faster, from measured times of steps: two lines
// over the number of cached tokens, and where they cross. Arithmetic only.
#ifndef XCACHE_ENGINE_REMAT_CROSSOVER_H_
#define XCACHE_ENGINE_REMAT_CROSSOVER_H_

#include <cstdint>
#include <limits>
#include <span>

namespace xcache {

// How long one sequence's decode step takes under each policy.
struct StepTime {
  int64_t cached_tokens = 0;
  double resume_seconds = 0.0;
  double step_seconds = 0.0;
};

// More tokens than any context has.
inline constexpr int64_t kNoRematCrossover =
    std::numeric_limits<int64_t>::max();

// The number of cached tokens below which `step` is the faster policy. 0:
// `resume` always; kNoRematCrossover: `step` always.
//
// Each policy's times are fitted by a line (least squares). One that falls is
// noise, since no step gets faster by more tokens: it is taken as flat. `step`
// has to be faster by more than the times scatter about their lines, at the
// fewest tokens that were measured; and the lines have to part again by more
// than that over the measured range, or they are parallel and never cross.
// Where `step` begins slower and gains with more tokens, `resume` it is: what
// is asked is how many tokens a conversation begins with, not what it grows to.
//
// 0 as well where there are no two different lengths, or a time is not finite
// or not positive.
int64_t FindRematCrossover(std::span<const StepTime> times);

}  // namespace xcache

#endif  // XCACHE_ENGINE_REMAT_CROSSOVER_H_
