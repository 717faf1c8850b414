// Attention in register tiles: six query rows times a tile of 64 keys at a
// time. With more than six rows the tile is widened to FP32 once, beforehand.
// Include after simd_*.h, simd_math.h.
#ifndef XCACHE_ENGINE_KERNELS_ATTENTION_SIMD_H_
#define XCACHE_ENGINE_KERNELS_ATTENTION_SIMD_H_

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/tile_simd.h"

namespace xcache {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// A group of rows on its way through a chunk. Row r's partial is at
// `partials` + r * PartialRowFloats; until the chunk's end the 16 floats after
// acc hold the partials of the weights' sum, and the maximum is in `maxima`.
struct RowGroup {
  const float* q = nullptr;  // [rows, head_dim], scaled
  float* partials = nullptr;
  float* maxima = nullptr;
  float* weights = nullptr;  // [rows, 64], scratch
  int num_keys[kRowTile];    // of this tile, 1 .. 64, ascending
  int first_key[kRowTile];   // the first that is seen; 64 or more: none
};

// One row's scores become weights 2^(z - max) in place, 0 before first_key and
// from num_keys on; updates the maximum and the sums; yields what the row's acc
// is to be multiplied with.
XCACHE_INLINE float SoftmaxRow(float* row, int first_key, int num_keys,
                               float* max, float* sums) {
  F z[4];
  if (first_key >= kTileKeys) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) Store(Zero(), row + v * 16);
    return 1.0f;
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) z[v] = Load(row + v * 16);
  if (num_keys < kTileKeys) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      z[v] = KeepFirst(z[v], num_keys - v * 16, Set1(kMinusInfinity));
    }
  }
  if (first_key > 0) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      z[v] = KeepFirst(Set1(kMinusInfinity), first_key - v * 16, z[v]);
    }
  }
  const float tile_max = MaxLane(Max(Max(z[0], z[1]), Max(z[2], z[3])));
  const float old_max = *max;
  const float new_max = (old_max > tile_max ? old_max : tile_max) + 0.0f;
  F w[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    w[v] = Exp2(Sub(z[v], Set1(new_max)));
    Store(w[v], row + v * 16);
  }
  F correction = Set1(1.0f);
  if (new_max != old_max) {
    *max = new_max;
    correction = Exp2(Set1(old_max - new_max));
  }
  const F added = Add(Add(w[0], w[1]), Add(w[2], w[3]));
  Store(Fma(Load(sums), correction, added), sums);
  float scalar[16];
  Store(correction, scalar);
  return scalar[0];
}

// Scores of the group: weights[r][j] = sum_d q[r][d] k[d][j] for the first
// 16 * kVecs * n keys that any row sees.
template <int kRows, FloatType kType>
void Scores(const RowGroup& group, const void* k_tile, int head_dim) {
  using T = typename Element<kType>::Type;
  const T* k = static_cast<const T*>(k_tile);
  const int vecs = (group.num_keys[kRows - 1] + 15) / 16;
  for (int v = 0; v < vecs; v += kVecTile) {
    F acc[kRows][kVecTile];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecTile; ++i) acc[r][i] = Zero();
    }
    MultiplyTile<kRows, kVecTile, kType>(group.q, head_dim, k + v * 16,
                                         kTileKeys, head_dim, acc);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecTile; ++i) {
        Store(acc[r][i], group.weights + r * kTileKeys + (v + i) * 16);
      }
    }
  }
}

// acc[r][d] = acc[r][d] * correction[r] + sum_j weights[r][j] v[j][d] for the
// 16 * kVecs channels from `channel` on.
template <int kRows, int kVecs, FloatType kType>
void Values(const RowGroup& group, const void* v_tile, int head_dim,
            int channel, const float* corrections) {
  using T = typename Element<kType>::Type;
  const int64_t stride = PartialRowFloats(head_dim);
  float* out = group.partials + channel;
  F acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      acc[r][i] = Mul(Load(out + r * stride + i * 16), Set1(corrections[r]));
    }
  }
  MultiplyTile<kRows, kVecs, kType>(group.weights, kTileKeys,
                                    static_cast<const T*>(v_tile) + channel,
                                    head_dim, group.num_keys[kRows - 1], acc);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      Store(acc[r][i], out + r * stride + i * 16);
    }
  }
}

template <int kRows, FloatType kType>
void GroupTile(const RowGroup& group, const void* k_tile, const void* v_tile,
               int head_dim) {
  Scores<kRows, kType>(group, k_tile, head_dim);
  float corrections[kRows];
  for (int r = 0; r < kRows; ++r) {
    float* sums = group.partials + r * PartialRowFloats(head_dim) + head_dim;
    corrections[r] =
        SoftmaxRow(group.weights + r * kTileKeys, group.first_key[r],
                   group.num_keys[r], group.maxima + r, sums);
  }
  int channel = 0;
  for (; channel + kVecTile * 16 <= head_dim; channel += kVecTile * 16) {
    Values<kRows, kVecTile, kType>(group, v_tile, head_dim, channel,
                                   corrections);
  }
  for (; channel < head_dim; channel += 16) {
    Values<kRows, 1, kType>(group, v_tile, head_dim, channel, corrections);
  }
}

template <FloatType kType>
void GroupTileOfRows(int rows, const RowGroup& group, const void* k_tile,
                     const void* v_tile, int head_dim) {
  static_assert(kRowTile == 6);
  switch (rows) {
    case 6:
      return GroupTile<6, kType>(group, k_tile, v_tile, head_dim);
    case 5:
      return GroupTile<5, kType>(group, k_tile, v_tile, head_dim);
    case 4:
      return GroupTile<4, kType>(group, k_tile, v_tile, head_dim);
    case 3:
      return GroupTile<3, kType>(group, k_tile, v_tile, head_dim);
    case 2:
      return GroupTile<2, kType>(group, k_tile, v_tile, head_dim);
    default:
      return GroupTile<1, kType>(group, k_tile, v_tile, head_dim);
  }
}

void Widen(const uint16_t* in, int n, float* out) {
  for (int i = 0; i < n; i += 16) Store(LoadF16(in + i), out + i);
}

void AttentionChunk(const AttentionArgs& args, int chunk, float* partial,
                    float* scratch) {
  const int hd = args.head_dim;
  const int rows = args.num_tokens * args.group;
  const int64_t stride = PartialRowFloats(hd);
  const int last_key = args.first_position + args.num_tokens - 1;
  float* wide_k = scratch;
  float* wide_v = wide_k + kTileKeys * hd;
  float* q = wide_v + kTileKeys * hd;
  float* weights = q + static_cast<int64_t>(rows) * hd;
  float maxima[64 * kMaxGroup];

  const F scale = Set1(args.scale * kLog2eHigh);
  for (int row = 0; row < rows; ++row) {
    const float* in =
        args.q + row / args.group * args.q_stride + row % args.group * hd;
    for (int d = 0; d < hd; d += 16) {
      Store(Mul(Load(in + d), scale), q + row * hd + d);
    }
    for (int d = 0; d < hd + 16; d += 16) {
      Store(Zero(), partial + row * stride + d);
    }
    maxima[row] = kMinusInfinity;
  }
  const int tiles_left = last_key / kTileKeys + 1 - chunk * kChunkTiles;
  const int num_tiles = tiles_left < kChunkTiles ? tiles_left : kChunkTiles;
  const bool widen = rows > kRowTile;
  const int unseen = FirstKey(args, 0) / kTileKeys - chunk * kChunkTiles;
  for (int i = unseen > 0 ? unseen : 0; i < num_tiles; ++i) {
    const int tile = chunk * kChunkTiles + i;
    const uint16_t* k_tile = args.k_tiles[tile];
    const uint16_t* v_tile = args.v_tiles[tile];
    const int first_key = tile * kTileKeys;
    if (widen) {
      const int left = last_key + 1 - first_key;
      Widen(k_tile, kTileKeys * hd, wide_k);
      Widen(v_tile, (left < kTileKeys ? left : kTileKeys) * hd, wide_v);
    }
    for (int row = 0; row < rows; row += kRowTile) {
      const int n = rows - row < kRowTile ? rows - row : kRowTile;
      RowGroup group;
      group.q = q + static_cast<int64_t>(row) * hd;
      group.partials = partial + row * stride;
      group.maxima = maxima + row;
      group.weights = weights;
      for (int r = 0; r < n; ++r) {
        const int token = (row + r) / args.group;
        const int left = args.first_position + token + 1 - first_key;
        group.num_keys[r] = left < kTileKeys ? left : kTileKeys;
        group.first_key[r] = FirstKey(args, token) - first_key;
      }
      if (widen) {
        GroupTileOfRows<FloatType::kF32>(n, group, wide_k, wide_v, hd);
      } else {
        GroupTileOfRows<FloatType::kF16>(n, group, k_tile, v_tile, hd);
      }
    }
  }
  for (int row = 0; row < rows; ++row, partial += stride) {
    for (int d = 0; d < hd; d += 16) {
      Store(Add(Load(partial + d), Zero()), partial + d);
    }
    const float sum = SumLanes(Load(partial + hd));
    partial[hd] = maxima[row];
    partial[hd + 1] = sum;
  }
}

void AttentionMerge(const AttentionArgs& args, float* into, const float* from) {
  const int hd = args.head_dim;
  for (int row = 0; row < args.num_tokens * args.group; ++row) {
    const float max = into[hd] > from[hd] ? into[hd] : from[hd];
    const F a = Exp2(Set1(into[hd] - max));
    const F b = Exp2(Set1(from[hd] - max));
    for (int d = 0; d < hd; d += 16) {
      Store(Fma(Load(into + d), a, Mul(Load(from + d), b)), into + d);
    }
    // Lane 1 is the sum; the maximum in lane 0 is then put right.
    Store(Fma(Load(into + hd), a, Mul(Load(from + hd), b)), into + hd);
    into[hd] = max;
    into += PartialRowFloats(hd);
    from += PartialRowFloats(hd);
  }
}

void AttentionFinish(const AttentionArgs& args, const float* partial) {
  const int hd = args.head_dim;
  for (int i = 0; i < args.num_tokens; ++i) {
    for (int g = 0; g < args.group; ++g) {
      float* out = args.out + i * args.out_stride + g * hd;
      const F inverse = Set1(1.0f / partial[hd + 1]);
      for (int d = 0; d < hd; d += 16) {
        Store(Mul(Load(partial + d), inverse), out + d);
      }
      partial += PartialRowFloats(hd);
    }
  }
}

XCACHE_INLINE void SetAttention(Kernels* table) {
  table->attention_chunk = AttentionChunk;
  table->attention_merge = AttentionMerge;
  table->attention_finish = AttentionFinish;
}

}  // namespace
}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_ATTENTION_SIMD_H_
