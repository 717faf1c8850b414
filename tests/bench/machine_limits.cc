#include "tests/bench/machine_limits.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "engine/base/thread_pool.h"

namespace xcache::bench {
namespace {

// The best of some runs of about 50 ms each.
double Measure(LimitLoop loop, ThreadPool& pool) {
  using Clock = std::chrono::steady_clock;
  constexpr double kRunSeconds = 0.05;
  constexpr int kRuns = 8;
  const int threads = pool.num_threads();
  std::vector<float> sinks(static_cast<size_t>(threads) * 16);
  double best = 0.0;
  int64_t rounds = 1 << 12;
  for (int run = 0; run < kRuns;) {
    std::vector<int64_t> done(static_cast<size_t>(threads));
    const auto start = Clock::now();
    pool.ParallelFor(threads, [&](int64_t i, int) {
      const auto at = static_cast<size_t>(i);
      done[at] = loop(rounds, &sinks[at * 16]);
    });
    const double seconds =
        std::chrono::duration<double>(Clock::now() - start).count();
    if (seconds < kRunSeconds) {
      rounds *= 2;
      continue;
    }
    int64_t total = 0;
    for (int64_t n : done) total += n;
    best = std::max(best, static_cast<double>(total) / seconds * 1e-9);
    ++run;
  }
  return best;
}

}  // namespace

MachineLimits MeasureMachineLimits(Isa isa, int threads) {
  MachineLimits limits;
#if defined(XCACHE_BENCH_X86)
  if (isa == Isa::kRef) return limits;
  ThreadPool pool(threads);
  const bool wide = isa == Isa::kAvx512;
  limits.fp32 = Measure(wide ? &Fp32LoopAvx512 : &Fp32LoopAvx2, pool);
  limits.int8 = Measure(wide ? &Int8LoopAvx512 : &Int8LoopAvx2, pool);
#else
  static_cast<void>(isa);
  static_cast<void>(threads);
#endif
  return limits;
}

}  // namespace xcache::bench
