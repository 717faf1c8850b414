// The bits of codes as pages hold them, and the operations that lead from rows
// to tiles and back: transposition and the Hadamard transform. Any size, any
// alignment; the same bits on every instruction set.
//
// Packed tile: `bits` planes, least significant first. A plane is
// [ceil(num_values / 8), num_groups] bytes: bit r of byte (j, g) is this
// plane's bit of code (8 j + r, g). Planes take every width from 1 to 8 bits
// alike, and unpacking is a shift and a mask for 16 groups at a time.
#ifndef XCACHE_ENGINE_KERNELS_PACK_BITS_H_
#define XCACHE_ENGINE_KERNELS_PACK_BITS_H_

#include <cstddef>
#include <cstdint>

namespace xcache {

inline constexpr size_t PackedTileBytes(int num_values, int num_groups,
                                        int bits) {
  return static_cast<size_t>((num_values + 7) / 8) *
         static_cast<size_t>(num_groups) * static_cast<size_t>(bits);
}

struct PackTileArgs {
  const uint8_t* codes = nullptr;  // [num_values, num_groups]
  int64_t codes_stride = 0;
  int num_values = 0;
  int num_groups = 0;
  int bits = 4;
  uint8_t* packed = nullptr;  // [PackedTileBytes]
};
using PackTileFn = void (*)(const PackTileArgs& args);

// x = base[g] + step[g] * code.
struct UnpackTileArgs {
  const uint8_t* packed = nullptr;
  int num_values = 0;
  int num_groups = 0;
  int bits = 4;
  const float* steps = nullptr;  // [num_groups]
  const float* bases = nullptr;  // [num_groups]
  float* x = nullptr;            // [num_values, num_groups]
  int64_t x_stride = 0;
};
using UnpackTileFn = void (*)(const UnpackTileArgs& args);

// out[c, r] = in[r, c]. Not in place.
using TransposeFn = void (*)(const float* in, int64_t in_stride, int num_rows,
                             int num_cols, float* out, int64_t out_stride);

// The unnormalised Walsh-Hadamard transform (Sylvester order) of each column,
// in place; row r of the result times factors[r] where they are not null.
// `num_rows` is a power of two.
using HadamardFn = void (*)(float* x, int64_t stride, int num_rows,
                            int num_cols, const float* factors);

// x[r, c] *= factors[r].
using ScaleRowsFn = void (*)(float* x, int64_t stride, int num_rows,
                             int num_cols, const float* factors);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_PACK_BITS_H_
