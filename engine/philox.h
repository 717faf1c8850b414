// Philox4x32-10, a counter-based random number generator: a block of four
// random words is a function of key and counter alone.
// J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#ifndef XCACHE_ENGINE_PHILOX_H_
#define XCACHE_ENGINE_PHILOX_H_

#include <array>
#include <cstdint>

namespace xcache {

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
  // Multipliers and Weyl increments of the paper's table 2 and section 4.
  constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kMul0} * counter[0];
    const uint64_t p1 = uint64_t{kMul1} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// Uniform in [0, 1), 53 bits: of the block at `counter` under `seed`.
inline double PhiloxUniform(uint64_t seed, uint64_t counter) {
  const std::array<uint32_t, 4> words = Philox4x32(
      {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0,
       0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = uint64_t{words[1]} << 32 | words[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_PHILOX_H_
