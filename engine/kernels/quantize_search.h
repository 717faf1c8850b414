// Constants of the search for a group's grid, shared by its implementations.
#ifndef XCACHE_ENGINE_KERNELS_QUANTIZE_SEARCH_H_
#define XCACHE_ENGINE_KERNELS_QUANTIZE_SEARCH_H_

namespace xcache {

// After the range itself, two narrower ones are tried; then step and centre are
// fitted to the codes by least squares, and codes to the grid again, as in
// Lloyd's algorithm. On K and V of a real model this ends within 0.5 % (2 bits)
// to 2.5 % (4 bits) of the squared error of a search three times as long, and
// 5 % below that of 13 narrowed ranges without a fit.
inline constexpr float kShrinks[] = {0.85f, 0.7f};
inline constexpr int kRefinements = 4;

// t + 2^23 has no room for a fraction: adding and subtracting it rounds a t of
// [0, 2^22] to the nearest integer, half to even.
inline constexpr float kRoundShift = 0x1p23f;

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_QUANTIZE_SEARCH_H_
