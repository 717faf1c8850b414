// How many multiplications with an addition this machine does in a second, at
// most: what kernels are held against. Measured, by loops that touch registers
// only.
#ifndef XCACHE_TESTS_BENCH_MACHINE_LIMITS_H_
#define XCACHE_TESTS_BENCH_MACHINE_LIMITS_H_

#include <cstdint>

#include "engine/kernels/isa.h"

namespace xcache::bench {

// In 10^9 multiply-adds a second, all threads together. 0: not measured, since
// the instruction set has no vectors.
struct MachineLimits {
  double fp32 = 0.0;  // FMA
  double int8 = 0.0;  // 8-bit products summed to 32 bits: VNNI on AVX-512
};

// Takes about a second.
MachineLimits MeasureMachineLimits(Isa isa, int threads);

// Loops of one instruction set: `rounds` rounds, then the number of
// multiply-adds that were done. `sink` gets what keeps the work from being
// removed.
using LimitLoop = int64_t (*)(int64_t rounds, float* sink);
int64_t Fp32LoopAvx2(int64_t rounds, float* sink);
int64_t Int8LoopAvx2(int64_t rounds, float* sink);
int64_t Fp32LoopAvx512(int64_t rounds, float* sink);
int64_t Int8LoopAvx512(int64_t rounds, float* sink);

}  // namespace xcache::bench

#endif  // XCACHE_TESTS_BENCH_MACHINE_LIMITS_H_
