// Scalar reference of attention, a row at a time: the oracle of the tests.
#include <cmath>
#include <limits>

#include "engine/kernels/isa_tables.h"
#include "engine/kernels/scalar_math.h"

namespace xcache {
namespace {

// One row over the keys [first, num_keys) of a tile. `sums` are the 16 partials
// of the weights' sum: key j in partial j % 16, (0 + 1) + (2 + 3) by groups
// of 16.
void TileRow(const float* q, const uint16_t* k_tile, const uint16_t* v_tile,
             int head_dim, int first, int num_keys, float* max, float* sums,
             float* acc) {
  float weights[kTileKeys] = {};
  float tile_max = -std::numeric_limits<float>::infinity();
  for (int j = first; j < num_keys; ++j) {
    float z = 0.0f;
    for (int d = 0; d < head_dim; ++d) {
      z = std::fma(q[d], F16ToF32(k_tile[d * kTileKeys + j]), z);
    }
    weights[j] = z;
    if (z > tile_max) tile_max = z;
  }
  // Adding 0 makes a maximum of -0 a +0, whichever came first.
  const float new_max = (*max > tile_max ? *max : tile_max) + 0.0f;
  const float correction = Exp2(*max - new_max);
  *max = new_max;
  for (int j = first; j < num_keys; ++j) {
    weights[j] = Exp2(weights[j] - new_max);
  }
  for (int i = 0; i < 16; ++i) {
    const float added =
        (weights[i] + weights[i + 16]) + (weights[i + 32] + weights[i + 48]);
    sums[i] = std::fma(sums[i], correction, added);
  }
  for (int d = 0; d < head_dim; ++d) {
    float value = acc[d] * correction;
    for (int j = first; j < num_keys; ++j) {
      value = std::fma(weights[j], F16ToF32(v_tile[j * head_dim + d]), value);
    }
    acc[d] = value;
  }
}

void AttentionChunk(const AttentionArgs& args, int chunk, float* partial,
                    float* /*scratch*/) {
  const int hd = args.head_dim;
  const float scale = args.scale * kLog2eHigh;
  for (int i = 0; i < args.num_tokens; ++i) {
    const int num_keys = args.first_position + i + 1;
    for (int g = 0; g < args.group; ++g, partial += PartialRowFloats(hd)) {
      const float* q_row = args.q + i * args.q_stride + g * hd;
      float q[256];
      for (int d = 0; d < hd; ++d) q[d] = q_row[d] * scale;
      for (int d = 0; d < hd; ++d) partial[d] = 0.0f;
      float max = -std::numeric_limits<float>::infinity();
      float sums[16] = {};
      for (int tile = chunk * kChunkTiles; tile < (chunk + 1) * kChunkTiles;
           ++tile) {
        const int first = FirstKey(args, i) - tile * kTileKeys;
        const int left = num_keys - tile * kTileKeys;
        if (left <= 0) break;
        if (first >= kTileKeys) continue;
        TileRow(q, args.k_tiles[tile], args.v_tiles[tile], hd,
                first > 0 ? first : 0, left < kTileKeys ? left : kTileKeys,
                &max, sums, partial);
      }
      // A zero's sign may depend on masked keys of a wider kernel: drop it.
      for (int d = 0; d < hd; ++d) partial[d] += 0.0f;
      partial[hd] = max;
      partial[hd + 1] = SumPartials(sums);
    }
  }
}

void AttentionMerge(const AttentionArgs& args, float* into, const float* from) {
  const int hd = args.head_dim;
  for (int row = 0; row < args.num_tokens * args.group; ++row) {
    const float max = into[hd] > from[hd] ? into[hd] : from[hd];
    const float a = Exp2(into[hd] - max);
    const float b = Exp2(from[hd] - max);
    for (int d = 0; d < hd; ++d) into[d] = std::fma(into[d], a, from[d] * b);
    into[hd] = max;
    into[hd + 1] = std::fma(into[hd + 1], a, from[hd + 1] * b);
    into += PartialRowFloats(hd);
    from += PartialRowFloats(hd);
  }
}

void AttentionFinish(const AttentionArgs& args, const float* partial) {
  const int hd = args.head_dim;
  for (int i = 0; i < args.num_tokens; ++i) {
    for (int g = 0; g < args.group; ++g, partial += PartialRowFloats(hd)) {
      float* out = args.out + i * args.out_stride + g * hd;
      const float inverse = 1.0f / partial[hd + 1];
      for (int d = 0; d < hd; ++d) out[d] = partial[d] * inverse;
    }
  }
}

}  // namespace

void AddAttentionRef(Kernels* table) {
  table->attention_chunk = AttentionChunk;
  table->attention_merge = AttentionMerge;
  table->attention_finish = AttentionFinish;
}

}  // namespace xcache
