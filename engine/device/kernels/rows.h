// Bodies of the kernels that work row by row: embedding, RMS norm, biases and
// RoPE with the writing of K/V tiles, SwiGLU, and the rows of kv-fp16 pages.
// One block of threads for each row, unless said otherwise; see thread_block.h.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_ROWS_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_ROWS_H_

#include <cstdint>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/kernels/weight_blocks.h"
#include "engine/device/ops.h"
#include "engine/types.h"

namespace xcache::cuda {

XC_HOST_DEVICE inline int64_t TileElements(const KvLayout& layout) {
  return int64_t{kBlockTokens} * layout.head_dim;
}
// Elements from a layer's tiles to the next layer's.
XC_HOST_DEVICE inline int64_t LayerElements(const KvLayout& layout) {
  return 2 * TileElements(layout) * layout.n_kv_heads;
}
XC_HOST_DEVICE inline int64_t KTile(const KvLayout& layout, int head) {
  return 2 * TileElements(layout) * head;
}
XC_HOST_DEVICE inline int64_t VTile(const KvLayout& layout, int head) {
  return KTile(layout, head) + TileElements(layout);
}

template <typename Block>
XC_HOST_DEVICE void EmbedRow(Block& block, const EmbedArgs& args, int row) {
  const int64_t token = args.rows[row].token;
  float* to = args.out + static_cast<int64_t>(row) * args.width;
  if (args.quantized.type != WeightType::kBf16) {
    const uint8_t* blocks =
        args.quantized.blocks + token * args.quantized.row_bytes;
    block.ForThreads([&](int thread) {
      for (int octet = thread; octet < args.width / 8; octet += kThreads) {
        float values[8] = {};
        WeightsOfRow(args.quantized.type, blocks, octet, values);
        for (int i = 0; i < 8; ++i) {
          to[8 * octet + i] = Bf16ToF32(F32ToBf16(values[i]));
        }
      }
    });
    return;
  }
  const uint16_t* from = args.table + token * args.width;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < args.width; i += kThreads) {
      to[i] = Bf16ToF32(from[i]);
    }
  });
}

// `shared`: kThreads floats.
template <typename Block>
XC_HOST_DEVICE void RmsNormRow(Block& block, const RmsNormArgs& args, int row,
                               float* shared) {
  const int64_t from = args.row_index != nullptr ? args.row_index[row] : row;
  const float* x = args.x + from * args.width;
  uint16_t* out = args.out + static_cast<int64_t>(row) * args.width;
  block.ForThreads([&](int thread) {
    float sum = 0.0f;
    for (int i = thread; i < args.width; i += kThreads) {
      sum = Fma(x[i], x[i], sum);
    }
    shared[thread] = sum;
  });
  for (int width = kThreads / 2; width > 0; width /= 2) {
    block.ForThreads([&](int thread) {
      if (thread < width) shared[thread] += shared[thread + width];
    });
  }
  const float rms = Sqrt(shared[0] / static_cast<float>(args.width) + args.eps);
  const float inverse = 1.0f / rms;
  float* unit = nullptr;
  float* kept_rms = nullptr;
  if (args.rows != nullptr) {
    const RowInfo& info = args.rows[row];
    const int64_t slot = int64_t{args.layer} * kBlockTokens + info.slot;
    if (info.unit_x != nullptr) unit = info.unit_x + slot * args.width;
    if (info.rms != nullptr) kept_rms = info.rms + slot;
  }
  block.ForThreads([&](int thread) {
    for (int i = thread; i < args.width; i += kThreads) {
      const float u = x[i] * inverse;
      if (unit != nullptr) unit[i] = u;
      out[i] = F32ToBf16(u * args.gain[i]);
    }
    if (thread == 0 && kept_rms != nullptr) *kept_rms = rms;
  });
}

// Element `i` of a head after its bias and RoPE. `bias` may be null.
XC_HOST_DEVICE inline float RotatedElement(const StoreKvArgs& args,
                                           const float* head, const float* bias,
                                           int i, const float* cos,
                                           const float* sin) {
  const auto value = [&](int e) {
    return bias != nullptr ? head[e] + bias[e] : head[e];
  };
  if (i >= args.rope_dim) return value(i);
  const int half = args.rope_dim / 2;
  const bool interleaved = args.rope_order == RopeOrder::kInterleaved;
  const bool second = interleaved ? i % 2 == 1 : i >= half;
  const int pair = interleaved ? i / 2 : i % half;
  const float a = value(interleaved ? 2 * pair : pair);
  const float b = value(interleaved ? 2 * pair + 1 : pair + half);
  return second ? Fma(b, cos[pair], a * sin[pair])
                : Fma(a, cos[pair], -(b * sin[pair]));
}

template <typename Block>
XC_HOST_DEVICE void StoreKvRow(Block& block, const StoreKvArgs& args, int row) {
  const KvLayout& layout = args.layout;
  const int head_dim = layout.head_dim;
  const int kv_dim = layout.n_kv_heads * head_dim;
  uint16_t* tiles;
  int64_t position;
  int slot;
  float* k_pre = nullptr;
  float* v_pre = nullptr;
  if (args.rows != nullptr) {
    const RowInfo& info = args.rows[row];
    tiles = info.tiles + args.layer * LayerElements(layout);
    position = info.position;
    slot = info.slot;
    const int64_t kept = (int64_t{args.layer} * kBlockTokens + slot) * kv_dim;
    if (info.k_pre != nullptr) k_pre = info.k_pre + kept;
    if (info.v_pre != nullptr) v_pre = info.v_pre + kept;
  } else {
    const BlockTarget& target = args.blocks[row / kBlockTokens];
    tiles = target.tiles + args.layer * target.layer_stride;
    slot = row % kBlockTokens;
    position = int64_t{target.first_position} + slot;
    if (slot < target.first_row) return;
  }
  const float* cos = args.cos + position * (args.rope_dim / 2);
  const float* sin = args.sin + position * (args.rope_dim / 2);
  const float* k = args.k + row * args.kv_stride;
  const float* v = args.v + row * args.kv_stride;
  block.ForThreads([&](int thread) {
    for (int e = thread; e < kv_dim; e += kThreads) {
      const int head = e / head_dim;
      const int i = e - head * head_dim;
      const int first = head * head_dim;
      if (k_pre != nullptr) k_pre[e] = k[e];
      if (v_pre != nullptr) v_pre[e] = v[e];
      const float* bk = args.bk != nullptr ? args.bk + first : nullptr;
      const float rotated = RotatedElement(args, k + first, bk, i, cos, sin);
      tiles[KTile(layout, head) + i * kBlockTokens + slot] = F32ToF16(rotated);
      const float value = args.bv != nullptr ? v[e] + args.bv[e] : v[e];
      tiles[VTile(layout, head) + slot * head_dim + i] = F32ToF16(value);
    }
    if (args.q == nullptr) return;
    const float* q = args.q + row * args.q_stride;
    const int q_dim = args.n_heads * head_dim;
    float* q_out = args.q_out + static_cast<int64_t>(row) * q_dim;
    for (int e = thread; e < q_dim; e += kThreads) {
      const int first = e / head_dim * head_dim;
      const float* bq = args.bq != nullptr ? args.bq + first : nullptr;
      q_out[e] = RotatedElement(args, q + first, bq, e - first, cos, sin);
    }
  });
}

template <typename Block>
XC_HOST_DEVICE void SiluMulRow(Block& block, const SiluMulArgs& args, int row) {
  const float* gate = args.gate_up + static_cast<int64_t>(row) * 2 * args.width;
  const float* up = gate + args.width;
  uint16_t* out = args.out + static_cast<int64_t>(row) * args.width;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < args.width; i += kThreads) {
      out[i] = F32ToBf16(Silu(gate[i]) * up[i]);
    }
  });
}

// One KV head of one block. Payloads have no alignment: bytes are read.
template <typename Block>
XC_HOST_DEVICE void StoreFinalHead(Block& block, const StoreFinalArgs& args,
                                   int index, int head) {
  const BlockTarget& target = args.blocks[index];
  const int head_dim = args.layout.head_dim;
  const int kv_dim = args.layout.n_kv_heads * head_dim;
  uint16_t* tiles = target.tiles + args.layer * target.layer_stride;
  const uint8_t* k = args.payloads[index] + args.offset;
  const uint8_t* v = k + int64_t{2} * kBlockTokens * kv_dim;
  block.ForThreads([&](int thread) {
    for (int e = thread; e < kBlockTokens * head_dim; e += kThreads) {
      const int slot = e / head_dim;
      const int i = e - slot * head_dim;
      if (slot < target.first_row) continue;
      const int64_t at = 2 * (int64_t{slot} * kv_dim + head * head_dim + i);
      tiles[KTile(args.layout, head) + i * kBlockTokens + slot] =
          static_cast<uint16_t>(k[at] | k[at + 1] << 8);
      tiles[VTile(args.layout, head) + e] =
          static_cast<uint16_t>(v[at] | v[at + 1] << 8);
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_ROWS_H_
