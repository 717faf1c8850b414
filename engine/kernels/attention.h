// Causal attention of one kv head over its K/V working set, FP16 in tiles of 64
// keys. Scores are FP32, multiplied over head_dim in order; softmax is online
// over absolute tiles in order; every 512 keys (a chunk) give a partial result,
// and the partials of a row are merged in order of their chunks. So a row's
// bits depend neither on the rows computed with it nor on who computes which
// chunk: the caller may hand chunks of a long sequence to different threads.
//
// Scores are kept in base 2: z = sum_d (q[d] * (scale * log2 e)) * k[d] and the
// weight of a key is 2^(z - max). They must be finite.
#ifndef XCACHE_ENGINE_KERNELS_ATTENTION_H_
#define XCACHE_ENGINE_KERNELS_ATTENTION_H_

#include <cstdint>

namespace xcache {

inline constexpr int kTileKeys = 64;
inline constexpr int kChunkTiles = 8;
inline constexpr int kChunkKeys = kTileKeys * kChunkTiles;
inline constexpr int kMaxGroup = 64;  // query heads of one kv head

// Query rows: `num_tokens` tokens of one sequence at positions first_position,
// +1, ..., all within one block of 64, times the `group` query heads of one kv
// head. Row (i, g) is at q + i * q_stride + g * head_dim, and its result at
// out + i * out_stride + g * head_dim; its number is i * group + g. It sees the
// keys 0 .. first_position + i, or the last `window` of them. Keys after the
// last token's, and whole tiles before the first token's window, may be
// anything, NaN included.
struct AttentionArgs {
  int head_dim = 0;    // a multiple of 16, 16 .. 256
  int group = 1;       // 1 .. kMaxGroup
  int num_tokens = 0;  // 1 .. 64
  int first_position = 0;
  int window = 0;  // keys that a token sees at most, its own included; 0: all
  float scale = 0.0f;
  const float* q = nullptr;
  int64_t q_stride = 0;  // elements
  // Tile b holds keys 64b .. 64b+63.
  const uint16_t* const* k_tiles = nullptr;  // each [head_dim][64] FP16
  const uint16_t* const* v_tiles = nullptr;  // each [64][head_dim] FP16
  float* out = nullptr;
  int64_t out_stride = 0;
};

// The first key that token `i` sees.
[[gnu::always_inline]] inline int FirstKey(const AttentionArgs& args, int i) {
  const int first = args.first_position + i + 1 - args.window;
  return args.window == 0 || first < 0 ? 0 : first;
}
// The first chunk that any token sees a key of; NumChunks is the end.
[[gnu::always_inline]] inline int FirstChunk(const AttentionArgs& args) {
  return FirstKey(args, 0) / kChunkKeys;
}
[[gnu::always_inline]] inline int NumChunks(const AttentionArgs& args) {
  return (args.first_position + args.num_tokens - 1) / kChunkKeys + 1;
}

// A row's partial result: acc[head_dim], max, sum, padding; in floats.
[[gnu::always_inline]] inline int64_t PartialRowFloats(int head_dim) {
  return head_dim + 16;
}
[[gnu::always_inline]] inline int64_t PartialFloats(const AttentionArgs& args) {
  return args.num_tokens * args.group * PartialRowFloats(args.head_dim);
}
// What attention_chunk needs beside: enough for `num_rows` = num_tokens * group
// rows, 64-byte aligned, one for each thread, contents irrelevant.
[[gnu::always_inline]] inline int64_t AttentionScratchFloats(int head_dim,
                                                             int num_rows) {
  return (2 * kTileKeys + static_cast<int64_t>(num_rows)) * head_dim +
         8 * kTileKeys;
}

// Writes the partial of every row over chunk `chunk`, FirstChunk <= chunk <
// NumChunks. That of a row that sees none of its keys changes nothing.
using AttentionChunkFn = void (*)(const AttentionArgs& args, int chunk,
                                  float* partial, float* scratch);
// into = into merged with `from`, the next chunk's partial.
using AttentionMergeFn = void (*)(const AttentionArgs& args, float* into,
                                  const float* from);
// Divides by the sum and writes args.out.
using AttentionFinishFn = void (*)(const AttentionArgs& args,
                                   const float* partial);

// The three of them, for chunk after chunk on the calling thread. `partials`
// has room for two partials.
struct Kernels;
void Attend(const Kernels& kernels, const AttentionArgs& args, float* partials,
            float* scratch);

// Writes K and V rows of one kv head, FP32 or FP16, into a tile at key slots
// slot, slot + 1, ... (at most 64). Row i is at k + i * stride, v + i * stride.
void StoreKv(const Kernels& kernels, const float* k, const float* v,
             int64_t stride, int num_rows, int head_dim, int slot,
             uint16_t* k_tile, uint16_t* v_tile);
void StoreKvF16(const uint16_t* k, const uint16_t* v, int64_t stride,
                int num_rows, int head_dim, int slot, uint16_t* k_tile,
                uint16_t* v_tile);

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_ATTENTION_H_
