// How a budget of bits is spread over the channels of a latent matrix, so that
// the sum of squared errors is least. Pure functions; the same on every
// machine.
#ifndef XCACHE_ENGINE_XCACHE_BIT_ALLOCATION_H_
#define XCACHE_ENGINE_XCACHE_BIT_ALLOCATION_H_

#include <span>
#include <vector>

namespace xcache {

// The bits of each channel: `bits` on average, 1 to 8 each, so that the sum of
// squared errors is least for channels of these standard deviations. Runs of 16
// channels are given alike, so that no vector register is cut.
std::vector<int> SpreadBits(std::span<const float> deviations, int bits);

// What stands for the deviations where a latent's errors are also seen by later
// layers (xquant-cl-gqa): `spectrum` are the channels' singular values.
std::vector<float> CrossLayerDeviations(std::span<const float> spectrum);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_BIT_ALLOCATION_H_
