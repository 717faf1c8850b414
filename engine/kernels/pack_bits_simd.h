// pack_bits.h with a vector of groups at a time; see quantize_groups_simd.h for
// how the includer chooses the width.
#ifndef XCACHE_ENGINE_KERNELS_PACK_BITS_SIMD_H_
#define XCACHE_ENGINE_KERNELS_PACK_BITS_SIMD_H_

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/quantize_groups_vector.h"

namespace xcache {
namespace {

typedef uint8_t Bytes32 __attribute__((vector_size(32)));

void PackTile(const PackTileArgs& args) {
  uint8_t* out = args.packed;
  for (int bit = 0; bit < args.bits; ++bit) {
    for (int row = 0; row < args.num_values; row += 8) {
      const int num_rows =
          args.num_values - row < 8 ? args.num_values - row : 8;
      const uint8_t* codes = args.codes + row * args.codes_stride;
      int g = 0;
      for (; g + 32 <= args.num_groups; g += 32) {
        Bytes32 byte = {};
        for (int r = 0; r < num_rows; ++r) {
          Bytes32 code;
          std::memcpy(&code, codes + r * args.codes_stride + g, sizeof(code));
          byte |= ((code >> bit) & 1) << r;
        }
        std::memcpy(out + g, &byte, sizeof(byte));
      }
      for (; g < args.num_groups; ++g) {
        int byte = 0;
        for (int r = 0; r < num_rows; ++r) {
          byte |= ((codes[r * args.codes_stride + g] >> bit) & 1) << r;
        }
        out[g] = static_cast<uint8_t>(byte);
      }
      out += args.num_groups;
    }
  }
}

// Eight rows, or fewer at a tile's end, of kLanes groups.
template <int kBits>
XC_LANES_INLINE void UnpackLanes(const uint8_t* packed, int64_t plane_bytes,
                                 int num_rows, F32 step, F32 base, float* x,
                                 int64_t x_stride) {
  I32 planes[kBits];
  for (int bit = 0; bit < kBits; ++bit) {
    planes[bit] = LoadBytes(packed + bit * plane_bytes);
  }
  for (int r = 0; r < num_rows; ++r) {
    I32 code = planes[0] & 1;
    planes[0] >>= 1;
    for (int bit = 1; bit < kBits; ++bit) {
      code |= (planes[bit] & 1) << bit;
      planes[bit] >>= 1;
    }
    Store(base + step * __builtin_convertvector(code, F32), x + r * x_stride);
  }
}

template <int kBits>
void UnpackBits(const UnpackTileArgs& args) {
  const int64_t plane_bytes =
      int64_t{(args.num_values + 7) / 8} * args.num_groups;
  int g = 0;
  for (; g + kLanes <= args.num_groups; g += kLanes) {
    const F32 step = Load(args.steps + g);
    const F32 base = Load(args.bases + g);
    const uint8_t* packed = args.packed + g;
    float* x = args.x + g;
    int rows = args.num_values;
    for (; rows >= 8; rows -= 8) {
      UnpackLanes<kBits>(packed, plane_bytes, 8, step, base, x, args.x_stride);
      packed += args.num_groups;
      x += 8 * args.x_stride;
    }
    if (rows > 0) {
      UnpackLanes<kBits>(packed, plane_bytes, rows, step, base, x,
                         args.x_stride);
    }
  }
  for (; g < args.num_groups; ++g) {
    for (int row = 0; row < args.num_values; ++row) {
      const uint8_t* packed = args.packed + row / 8 * args.num_groups + g;
      int code = 0;
      for (int bit = 0; bit < kBits; ++bit) {
        code |= ((packed[bit * plane_bytes] >> (row % 8)) & 1) << bit;
      }
      args.x[row * args.x_stride + g] =
          args.bases[g] + args.steps[g] * static_cast<float>(code);
    }
  }
}

void UnpackTile(const UnpackTileArgs& args) {
  using Fn = void (*)(const UnpackTileArgs&);
  constexpr Fn kFns[] = {UnpackBits<1>, UnpackBits<2>, UnpackBits<3>,
                         UnpackBits<4>, UnpackBits<5>, UnpackBits<6>,
                         UnpackBits<7>, UnpackBits<8>};
  kFns[args.bits - 1](args);
}

typedef float F8 __attribute__((vector_size(32)));

// Eight rows of eight columns, in registers: pairs, fours, halves.
XC_LANES_INLINE void Transpose8(const float* in, int64_t in_stride, float* out,
                                int64_t out_stride) {
  F8 a[8], b[8], c[8];
  for (int i = 0; i < 8; ++i) {
    std::memcpy(&a[i], in + i * in_stride, sizeof(F8));
  }
  for (int i = 0; i < 8; i += 2) {
    b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] =
        __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    c[i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    c[i + 1] =
        __builtin_shufflevector(b[i], b[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    c[i + 2] =
        __builtin_shufflevector(b[i + 1], b[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    c[i + 3] =
        __builtin_shufflevector(b[i + 1], b[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    const F8 first =
        __builtin_shufflevector(c[i], c[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    const F8 second =
        __builtin_shufflevector(c[i], c[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    std::memcpy(out + i * out_stride, &first, sizeof(F8));
    std::memcpy(out + (i + 4) * out_stride, &second, sizeof(F8));
  }
}

void Transpose(const float* in, int64_t in_stride, int num_rows, int num_cols,
               float* out, int64_t out_stride) {
  const int rows8 = num_rows / 8 * 8;
  const int cols8 = num_cols / 8 * 8;
  for (int c = 0; c < cols8; c += 8) {
    for (int r = 0; r < rows8; r += 8) {
      Transpose8(in + r * in_stride + c, in_stride, out + c * out_stride + r,
                 out_stride);
    }
  }
  for (int r = 0; r < num_rows; ++r) {
    for (int c = r < rows8 ? cols8 : 0; c < num_cols; ++c) {
      out[c * out_stride + r] = in[r * in_stride + c];
    }
  }
}

void ScaleRows(float* x, int64_t stride, int num_rows, int num_cols,
               const float* factors) {
  for (int r = 0; r < num_rows; ++r) {
    float* row = x + r * stride;
    int c = 0;
    for (; c + kLanes <= num_cols; c += kLanes) {
      Store(Load(row + c) * factors[r], row + c);
    }
    for (; c < num_cols; ++c) row[c] *= factors[r];
  }
}

// log2(kRadix) steps of the transform, from distance `half` on, in registers;
// then the factors, where this is the last pass.
template <int kRadix>
void HadamardPass(float* x, int64_t stride, int num_rows, int num_cols,
                  int half, const float* factors) {
  const int64_t step = half * stride;
  for (int block = 0; block < num_rows; block += kRadix * half) {
    for (int r = block; r < block + half; ++r) {
      float* row = x + r * stride;
      int c = 0;
      for (; c + kLanes <= num_cols; c += kLanes) {
        F32 v[kRadix];
        for (int i = 0; i < kRadix; ++i) v[i] = Load(row + i * step + c);
        for (int h = 1; h < kRadix; h *= 2) {
          for (int i = 0; i < kRadix; ++i) {
            if ((i & h) != 0) continue;
            const F32 sum = v[i] + v[i + h];
            v[i + h] = v[i] - v[i + h];
            v[i] = sum;
          }
        }
        for (int i = 0; i < kRadix; ++i) {
          if (factors != nullptr) v[i] *= factors[r + i * half];
          Store(v[i], row + i * step + c);
        }
      }
      for (; c < num_cols; ++c) {
        for (int h = 1; h < kRadix; h *= 2) {
          for (int i = 0; i < kRadix; ++i) {
            if ((i & h) != 0) continue;
            float* a = row + i * step + c;
            float* b = a + h * step;
            const float sum = *a + *b;
            *b = *a - *b;
            *a = sum;
          }
        }
        for (int i = 0; factors != nullptr && i < kRadix; ++i) {
          row[i * step + c] *= factors[r + i * half];
        }
      }
    }
  }
}

template <int kRadix>
void HadamardPasses(float* x, int64_t stride, int num_rows, int num_cols,
                    const float* factors, int* half) {
  for (; *half * kRadix <= num_rows; *half *= kRadix) {
    const bool last = *half * kRadix == num_rows;
    HadamardPass<kRadix>(x, stride, num_rows, num_cols, *half,
                         last ? factors : nullptr);
  }
}

void Hadamard(float* x, int64_t stride, int num_rows, int num_cols,
              const float* factors) {
  if (num_rows == 1 && factors != nullptr) {
    return ScaleRows(x, stride, 1, num_cols, factors);
  }
  int half = 1;
  HadamardPasses<8>(x, stride, num_rows, num_cols, factors, &half);
  HadamardPasses<2>(x, stride, num_rows, num_cols, factors, &half);
}

void SetPackBits(CodecKernels* table) {
  table->pack_tile = PackTile;
  table->unpack_tile = UnpackTile;
  table->transpose = Transpose;
  table->hadamard = Hadamard;
  table->scale_rows = ScaleRows;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_PACK_BITS_SIMD_H_
