// What attention needs on every instruction set alike: the loop over chunks and
// the writing of K and V into tiles.
#include "engine/kernels/attention.h"

#include <algorithm>

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/kernels.h"

namespace xcache {

void Attend(const Kernels& kernels, const AttentionArgs& args, float* partials,
            float* scratch) {
  const int first = FirstChunk(args);
  kernels.attention_chunk(args, first, partials, scratch);
  float* next = partials + PartialFloats(args);
  for (int chunk = first + 1; chunk < NumChunks(args); ++chunk) {
    kernels.attention_chunk(args, chunk, next, scratch);
    kernels.attention_merge(args, partials, next);
  }
  kernels.attention_finish(args, partials);
}

void StoreKvF16(const uint16_t* k, const uint16_t* v, int64_t stride,
                int num_rows, int head_dim, int slot, uint16_t* k_tile,
                uint16_t* v_tile) {
  for (int row = 0; row < num_rows; ++row) {
    for (int d = 0; d < head_dim; ++d) {
      v_tile[(slot + row) * head_dim + d] = v[row * stride + d];
    }
  }
  for (int d = 0; d < head_dim; ++d) {
    for (int row = 0; row < num_rows; ++row) {
      k_tile[d * kTileKeys + slot + row] = k[row * stride + d];
    }
  }
}

void StoreKv(const Kernels& kernels, const float* k, const float* v,
             int64_t stride, int num_rows, int head_dim, int slot,
             uint16_t* k_tile, uint16_t* v_tile) {
  for (int row = 0; row < num_rows; ++row) {
    kernels.to_f16(v + row * stride, head_dim,
                   v_tile + (slot + row) * head_dim);
  }
  if (num_rows < 8) {
    uint16_t k_row[256];
    for (int row = 0; row < num_rows; ++row) {
      kernels.to_f16(k + row * stride, head_dim, k_row);
      for (int d = 0; d < head_dim; ++d) {
        k_tile[d * kTileKeys + slot + row] = k_row[d];
      }
    }
    return;
  }
  // Turned first, then rounded: the tile's rows are written whole.
  constexpr int kPiece = 64;
  float turned[kPiece * kTileKeys];
  const TransposeFn transpose = GetCodecKernels(kernels.isa).transpose;
  for (int begin = 0; begin < head_dim; begin += kPiece) {
    const int piece = std::min(kPiece, head_dim - begin);
    transpose(k + begin, stride, num_rows, piece, turned, kTileKeys);
    for (int d = 0; d < piece; ++d) {
      kernels.to_f16(turned + d * kTileKeys, num_rows,
                     k_tile + (begin + d) * kTileKeys + slot);
    }
  }
}

}  // namespace xcache
