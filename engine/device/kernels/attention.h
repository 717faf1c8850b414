// Bodies of the attention kernels: a task's partial result over one chunk of
// keys, by tensor cores, and the merging of a row's chunks. Online softmax over
// absolute tiles of 64 keys in order, partials merged in order of their chunks,
// scores in base 2: a row's bits depend on no other row.
//
// A block of threads is a task and a KV head; a warp has 16 of the task's query
// rows, in registers throughout: queries, scores, weights and results are
// fragments (mma_fragments.h), and the sums of one product are the left side of
// the next as they lie. K is copied to shared memory while the tile before is
// summed up, V while the scores are computed.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_ATTENTION_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_ATTENTION_H_

#include <cstdint>
#include <type_traits>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/mma_fragments.h"
#include "engine/device/kernels/rows.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
#include "engine/types.h"

namespace xcache::cuda {

inline constexpr int kMaxHeadDim = 256;

static_assert(kAttentionRows == kWarps * kMmaRows, "16 rows a warp");

// Pairs of columns of a product that are loaded together.
inline constexpr int kKeyPairs = kBlockTokens / (2 * kMmaCols);
inline constexpr int kKeySteps = kBlockTokens / kMmaDepth;
// 16 bytes more than a row, so that eight rows' 16 bytes are in 32 banks.
inline constexpr int kSharedPadding = 8;
inline constexpr int kKStride = kBlockTokens + kSharedPadding;

// Calls fn with the number of channels, a constant, that its registers are for.
template <typename Fn>
void ForAttentionDim(int head_dim, const Fn& fn) {
  if (head_dim <= 64) {
    fn(std::integral_constant<int, 64>());
  } else if (head_dim <= 128) {
    fn(std::integral_constant<int, 128>());
  } else {
    fn(std::integral_constant<int, kMaxHeadDim>());
  }
}

XC_HOST_DEVICE inline int PartialRowFloats(int head_dim) {
  return head_dim + 2;  // sums, maximum, sum of the weights
}
// Query rows of a task: the item's last task may have fewer.
XC_HOST_DEVICE inline int QueryRows(const AttentionTask& task, int group) {
  const int left = task.num_tokens * group - task.first_query;
  return left < kAttentionRows ? left : kAttentionRows;
}
XC_HOST_DEVICE inline int64_t PartialAt(const AttentionArgs& args,
                                        const AttentionTask& task, int head) {
  return (task.partial_row * args.layout.n_kv_heads +
          int64_t{head} * QueryRows(task, args.group)) *
         PartialRowFloats(args.layout.head_dim);
}
// Halves of shared memory that AttendChunk needs, 16-byte aligned.
XC_HOST_DEVICE inline int AttentionSharedHalves(int head_dim) {
  return head_dim * kKStride + kBlockTokens * (head_dim + kSharedPadding);
}

// The tile's K [head_dim, 64], and V [64, head_dim] with zeros for keys from
// num_keys on: what is there weighs nothing, but may be no number.
template <typename Block>
XC_HOST_DEVICE void CopyKTile(Block& block, const uint16_t* tile, int head_dim,
                              int thread, uint16_t* to) {
  constexpr int kOctets = kBlockTokens / 8;
  for (int i = thread; i < head_dim * kOctets; i += kThreads) {
    block.CopyAsync(to + i / kOctets * kKStride + i % kOctets * 8,
                    tile + i * 8);
  }
}
template <typename Block>
XC_HOST_DEVICE void CopyVTile(Block& block, const uint16_t* tile, int head_dim,
                              int num_keys, int thread, uint16_t* to) {
  const int octets = head_dim / 8;
  for (int i = thread; i < kBlockTokens * octets; i += kThreads) {
    const int key = i / octets;
    uint16_t* octet =
        to + key * (head_dim + kSharedPadding) + (i - key * octets) * 8;
    if (key < num_keys) {
      block.CopyAsync(octet, tile + i * 8);
    } else {
      for (int j = 0; j < 8; ++j) octet[j] = 0;
    }
  }
}

// A thread's part of 16 query rows: rows lane / 4 and lane / 4 + 8.
template <int kMaxDim>
struct AttentionState {
  MmaA q[kMaxDim / kMmaDepth];
  MmaSums scores[2 * kKeyPairs];
  MmaA weights[kKeySteps];
  MmaSums out[kMaxDim / kMmaCols];
  float max[2] = {};
  float sum[2] = {};
};

// REQUIRES: head_dim is a multiple of 16, at most kMaxDim.
template <int kMaxDim, typename Block>
XC_HOST_DEVICE void AttendChunk(Block& block, const AttentionArgs& args,
                                int task_index, int head, uint16_t* shared) {
  constexpr int kSteps = kMaxDim / kMmaDepth;
  const AttentionTask task = args.tasks[task_index];
  const int head_dim = args.layout.head_dim;
  const int num_rows = QueryRows(task, args.group);
  const float minus_infinity = FloatOf(0xff800000u);
  const int v_stride = head_dim + kSharedPadding;
  uint16_t* k_shared = shared;                        // [head_dim][64]
  uint16_t* v_shared = shared + head_dim * kKStride;  // [64][head_dim]

  // Of the last key that any of the rows sees, and of a row.
  const int last_position =
      task.first_position + (task.first_query + num_rows - 1) / args.group;
  const auto position_of = [&](int row) {
    return task.first_position + (task.first_query + row) / args.group;
  };
  const auto keys_of = [&](int tile) {
    const int seen = last_position + 1 - tile * kBlockTokens;
    return seen < kBlockTokens ? seen : kBlockTokens;
  };
  const auto tiles_of = [&](int tile) {
    const BlockTable& entry = args.blocks[task.first_block + tile];
    return entry.tiles + args.layer * entry.layer_stride;
  };

  typename Block::template PerThread<AttentionState<kMaxDim>> state;
  const int first_tile = task.chunk * kChunkTiles;
  block.ForThreads([&](int thread) {
    CopyKTile(block, tiles_of(first_tile) + KTile(args.layout, head), head_dim,
              thread, k_shared);
    AttentionState<kMaxDim>& s = state(thread);
    const int lane = thread % kWarpLanes;
    const int first_row = thread / kWarpLanes * kMmaRows;
    const float scale = args.scale * kLog2eHigh;
    XC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      XC_UNROLL
      for (int pair = 0; pair < 4; ++pair) {
        const MmaPlace at = MmaPlaceA(lane, 2 * pair);
        const int query = task.first_query + first_row + at.row;
        float values[2] = {};
        for (int i = 0; i < 2; ++i) {
          const int d = step * kMmaDepth + at.col + i;
          if (first_row + at.row >= num_rows || d >= head_dim) continue;
          const int64_t token = task.row + query / args.group;
          const int64_t query_head =
              int64_t{head} * args.group + query % args.group;
          values[i] = args.q[(token * args.layout.n_kv_heads * args.group +
                              query_head) *
                                 head_dim +
                             d] *
                      scale;
        }
        s.q[step].pairs[pair] = PackHalves(values[0], values[1]);
      }
    }
    s.max[0] = s.max[1] = minus_infinity;
  });

  for (int tile = first_tile; tile < first_tile + kChunkTiles; ++tile) {
    const int first_key = tile * kBlockTokens;
    if (first_key > last_position) break;
    const int num_keys = keys_of(tile);
    block.FinishCopies();  // K
    block.ForThreads([&](int thread) {
      CopyVTile(block, tiles_of(tile) + VTile(args.layout, head), head_dim,
                num_keys, thread, v_shared);
    });
    block.ForWarps([&](auto& warp) {
      using Warp = std::remove_reference_t<decltype(warp)>;
      const int first_row = warp.index() * kMmaRows;
      if (first_row >= num_rows) return;
      const auto of = [&](int lane) -> AttentionState<kMaxDim>& {
        return state(warp.index() * kWarpLanes + lane);
      };
      warp.ForLanes([&](int lane) {
        XC_UNROLL
        for (int c = 0; c < 2 * kKeyPairs; ++c) of(lane).scores[c] = MmaSums();
      });
      XC_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        if (step * kMmaDepth >= head_dim) break;
        XC_UNROLL
        for (int pair = 0; pair < kKeyPairs; ++pair) {
          typename Warp::template PerLane<MmaB> b[2];
          warp.LoadTransposed(
              k_shared + step * kMmaDepth * kKStride + pair * 2 * kMmaCols,
              kKStride, b[0], b[1]);
          XC_UNROLL
          for (int i = 0; i < 2; ++i) {
            warp.template Mma<HalfType::kF16>(
                [&](int lane) -> const MmaA& { return of(lane).q[step]; }, b[i],
                [&](int lane) -> MmaSums& {
                  return of(lane).scores[2 * pair + i];
                });
          }
        }
      }

      // A key that a row does not see weighs nothing.
      typename Warp::template PerLane<float> max[2], sum[2];
      warp.ForLanes([&](int lane) {
        AttentionState<kMaxDim>& s = of(lane);
        XC_UNROLL
        for (int r = 0; r < 2; ++r) {
          const int row = first_row + MmaPlaceSum(lane, 2 * r).row;
          const int visible = position_of(row) + 1 - first_key;
          max[r](lane) = minus_infinity;
          XC_UNROLL
          for (int c = 0; c < 2 * kKeyPairs; ++c) {
            XC_UNROLL
            for (int i = 0; i < 2; ++i) {
              float& z = s.scores[c].of[2 * r + i];
              const int key = c * kMmaCols + MmaPlaceSum(lane, i).col;
              z = key < num_keys && key < visible ? z : minus_infinity;
              max[r](lane) = max[r](lane) < z ? z : max[r](lane);
            }
          }
        }
      });
      XC_UNROLL
      for (int r = 0; r < 2; ++r) {
        warp.CombineQuads(max[r],
                          [](float a, float b) { return a < b ? b : a; });
      }
      warp.ForLanes([&](int lane) {
        AttentionState<kMaxDim>& s = of(lane);
        XC_UNROLL
        for (int r = 0; r < 2; ++r) {
          if (max[r](lane) < s.max[r]) max[r](lane) = s.max[r];
          const float correction = Exp2(s.max[r] - max[r](lane));
          s.max[r] = max[r](lane);
          s.sum[r] = s.sum[r] * correction;
          sum[r](lane) = 0.0f;
          XC_UNROLL
          for (int c = 0; c < 2 * kKeyPairs; ++c) {
            float weights[2];
            XC_UNROLL
            for (int i = 0; i < 2; ++i) {
              weights[i] = Exp2(s.scores[c].of[2 * r + i] - s.max[r]);
              sum[r](lane) += weights[i];
            }
            // Sums of two neighbouring products are the left side of the next.
            s.weights[c / 2].pairs[c % 2 * 2 + r] =
                PackHalves(weights[0], weights[1]);
          }
          XC_UNROLL
          for (int c = 0; c < 2 * kSteps; ++c) {
            s.out[c].of[2 * r] = s.out[c].of[2 * r] * correction;
            s.out[c].of[2 * r + 1] = s.out[c].of[2 * r + 1] * correction;
          }
        }
      });
      XC_UNROLL
      for (int r = 0; r < 2; ++r) {
        warp.CombineQuads(sum[r], [](float a, float b) { return a + b; });
      }
      warp.ForLanes([&](int lane) {
        of(lane).sum[0] += sum[0](lane);
        of(lane).sum[1] += sum[1](lane);
      });
    });

    block.FinishCopies();  // V
    block.ForThreads([&](int thread) {
      if (tile + 1 == first_tile + kChunkTiles ||
          first_key + kBlockTokens > last_position) {
        return;
      }
      CopyKTile(block, tiles_of(tile + 1) + KTile(args.layout, head), head_dim,
                thread, k_shared);
    });
    block.ForWarps([&](auto& warp) {
      using Warp = std::remove_reference_t<decltype(warp)>;
      if (warp.index() * kMmaRows >= num_rows) return;
      const auto of = [&](int lane) -> AttentionState<kMaxDim>& {
        return state(warp.index() * kWarpLanes + lane);
      };
      XC_UNROLL
      for (int pair = 0; pair < kSteps; ++pair) {
        if (pair * 2 * kMmaCols >= head_dim) break;
        XC_UNROLL
        for (int step = 0; step < kKeySteps; ++step) {
          typename Warp::template PerLane<MmaB> b[2];
          warp.LoadTransposed(
              v_shared + step * kMmaDepth * v_stride + pair * 2 * kMmaCols,
              v_stride, b[0], b[1]);
          XC_UNROLL
          for (int i = 0; i < 2; ++i) {
            warp.template Mma<HalfType::kF16>(
                [&](int lane) -> const MmaA& { return of(lane).weights[step]; },
                b[i],
                [&](int lane) -> MmaSums& {
                  return of(lane).out[2 * pair + i];
                });
          }
        }
      }
    });
  }

  float* partial = args.partials + PartialAt(args, task, head);
  const int row_floats = PartialRowFloats(head_dim);
  block.ForThreads([&](int thread) {
    const AttentionState<kMaxDim>& s = state(thread);
    const int lane = thread % kWarpLanes;
    XC_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row =
          thread / kWarpLanes * kMmaRows + MmaPlaceSum(lane, 2 * r).row;
      if (row >= num_rows) continue;
      float* to = partial + row * row_floats;
      XC_UNROLL
      for (int c = 0; c < 2 * kSteps; ++c) {
        XC_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int d = c * kMmaCols + MmaPlaceSum(lane, i).col;
          if (d < head_dim) to[d] = s.out[c].of[2 * r + i];
        }
      }
      if (lane % 4 == 0) {
        to[head_dim] = s.max[r];
        to[head_dim + 1] = s.sum[r];
      }
    }
  });
}

// For the tasks with chunk 0: merges their rows' chunks and writes the result.
template <typename Block>
XC_HOST_DEVICE void MergeChunks(Block& block, const AttentionArgs& args,
                                int task_index, int head) {
  const AttentionTask task = args.tasks[task_index];
  if (task.chunk != 0) return;
  const int head_dim = args.layout.head_dim;
  const int q_dim = args.layout.n_kv_heads * args.group * head_dim;
  const int num_rows = QueryRows(task, args.group);
  const int row_floats = PartialRowFloats(head_dim);
  block.ForThreads([&](int thread) {
    for (int e = thread; e < num_rows * head_dim; e += kThreads) {
      const int row = e / head_dim;
      const int d = e - row * head_dim;
      float value = 0.0f, sum = 0.0f;
      float max = FloatOf(0xff800000u);
      for (int chunk = 0; chunk < task.num_chunks; ++chunk) {
        const float* from =
            args.partials +
            PartialAt(args, args.tasks[task_index + chunk], head) +
            row * row_floats;
        const float chunk_max = from[head_dim];
        const float new_max = max > chunk_max ? max : chunk_max;
        const float a = Exp2(max - new_max);
        const float b = Exp2(chunk_max - new_max);
        value = Fma(value, a, from[d] * b);
        sum = Fma(sum, a, from[head_dim + 1] * b);
        max = new_max;
      }
      const int query = task.first_query + row;
      const int64_t token = task.row + query / args.group;
      const int column =
          (head * args.group + query % args.group) * head_dim + d;
      args.out[token * q_dim + column] = F32ToBf16(value / sum);
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_ATTENTION_H_
