// Bodies of the attention kernels: a task's partial result over one chunk of
// 256 keys, and the merging of a row's chunks. Online softmax over absolute
// tiles of 64 keys in order, partials merged in order of their chunks, scores
// in base 2: a row's bits depend on no other row.
#ifndef XCACHE_ENGINE_CUDA_ATTENTION_KERNELS_H_
#define XCACHE_ENGINE_CUDA_ATTENTION_KERNELS_H_

#include <cstdint>

#include "engine/cuda/device_math.h"
#include "engine/cuda/device_ops.h"
#include "engine/cuda/row_kernels.h"
#include "engine/cuda/thread_block.h"
#include "engine/types.h"

namespace xcache::cuda {

inline constexpr int kMaxHeadDim = 256;
// Query rows of one thread's part of scores, and of results.
inline constexpr int kRowsPerThread = 8;
inline constexpr int kRowParts = kAttentionRows / kRowsPerThread;
// Threads of a query row in the softmax.
inline constexpr int kSoftmaxLanes = kThreads / kAttentionRows;
inline constexpr int kKeysPerLane = kBlockTokens / kSoftmaxLanes;
// (row part, element) pairs of a thread.
inline constexpr int kMaxUnits = kRowParts * kMaxHeadDim / kThreads;

static_assert(kThreads == kRowParts * kBlockTokens,
              "scores: a thread for each key and row part");

XC_HOST_DEVICE inline int PartialRowFloats(int head_dim) {
  return head_dim + 2;  // sums, maximum, sum of the weights
}
XC_HOST_DEVICE inline int64_t PartialAt(const AttentionArgs& args, int task,
                                        int head) {
  return (int64_t{task} * args.layout.n_kv_heads + head) * kAttentionRows *
         PartialRowFloats(args.layout.head_dim);
}
// Query rows of a task: the item's last task may have fewer.
XC_HOST_DEVICE inline int QueryRows(const AttentionArgs& args,
                                    const AttentionTask& task) {
  const int left = task.num_tokens * args.group - task.first_query;
  return left < kAttentionRows ? left : kAttentionRows;
}
// Floats of shared memory that AttendChunk needs.
XC_HOST_DEVICE inline int AttentionSharedFloats(int head_dim) {
  return kAttentionRows * (head_dim + kBlockTokens + kSoftmaxLanes + 3);
}

template <typename Block>
XC_HOST_DEVICE void AttendChunk(Block& block, const AttentionArgs& args,
                                int task_index, int head, float* shared) {
  const AttentionTask task = args.tasks[task_index];
  const int head_dim = args.layout.head_dim;
  const int q_dim = args.layout.n_kv_heads * args.group * head_dim;
  const int num_rows = QueryRows(args, task);
  float* q = shared;                                       // [16][head_dim]
  float* weights = q + kAttentionRows * head_dim;          // [16][64]
  float* lanes = weights + kAttentionRows * kBlockTokens;  // [16][lanes]
  float* row_max = lanes + kAttentionRows * kSoftmaxLanes;
  float* row_sum = row_max + kAttentionRows;
  float* correction = row_sum + kAttentionRows;
  const float minus_infinity = FloatOf(0xff800000u);
  const int units = kRowParts * head_dim;

  struct Sums {
    float of[kMaxUnits][kRowsPerThread];
  };
  typename Block::template PerThread<Sums> sums;

  block.ForThreads([&](int thread) {
    const float scale = args.scale * kLog2eHigh;
    for (int e = thread; e < kAttentionRows * head_dim; e += kThreads) {
      const int row = e / head_dim;
      float value = 0.0f;
      if (row < num_rows) {
        const int query = task.first_query + row;
        const int64_t token = task.row + query / args.group;
        const int column =
            (head * args.group + query % args.group) * head_dim + e % head_dim;
        value = args.q[token * q_dim + column] * scale;
      }
      q[e] = value;
    }
    if (thread < kAttentionRows) {
      row_max[thread] = minus_infinity;
      row_sum[thread] = 0.0f;
    }
    XC_UNROLL
    for (int j = 0; j < kMaxUnits; ++j) {
      XC_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r) sums(thread).of[j][r] = 0.0f;
    }
  });

  // Position of the last key that any of the rows sees, and of a row.
  const int last_position =
      task.first_position + (task.first_query + num_rows - 1) / args.group;
  const auto position_of = [&](int row) {
    return task.first_position + (task.first_query + row) / args.group;
  };
  for (int tile = task.chunk * kChunkTiles;
       tile < (task.chunk + 1) * kChunkTiles; ++tile) {
    const int first_key = tile * kBlockTokens;
    if (first_key > last_position) break;
    const int seen = last_position + 1 - first_key;
    const int num_keys = seen < kBlockTokens ? seen : kBlockTokens;
    const BlockTable& entry = args.blocks[task.first_block + tile];
    const uint16_t* tiles = entry.tiles + args.layer * entry.layer_stride;
    const uint16_t* k_tile = tiles + KTile(args.layout, head);
    const uint16_t* v_tile = tiles + VTile(args.layout, head);

    // Scores. A key that a row does not see weighs nothing.
    block.ForThreads([&](int thread) {
      const int key = thread % kBlockTokens;
      const int part = thread / kBlockTokens;
      float z[kRowsPerThread];
      XC_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r) z[r] = 0.0f;
      if (key < num_keys) {
        for (int d = 0; d < head_dim; ++d) {
          const float k = F16ToF32(k_tile[d * kBlockTokens + key]);
          XC_UNROLL
          for (int r = 0; r < kRowsPerThread; ++r) {
            z[r] = Fma(q[(part * kRowsPerThread + r) * head_dim + d], k, z[r]);
          }
        }
      }
      XC_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r) {
        const int row = part * kRowsPerThread + r;
        const bool visible =
            key < num_keys && first_key + key <= position_of(row);
        weights[row * kBlockTokens + key] = visible ? z[r] : minus_infinity;
      }
    });
    // Maxima of each lane's keys; then weights and their sums.
    block.ForThreads([&](int thread) {
      const int row = thread / kSoftmaxLanes;
      const int lane = thread % kSoftmaxLanes;
      float max = minus_infinity;
      for (int j = 0; j < kKeysPerLane; ++j) {
        const float z = weights[row * kBlockTokens + lane + j * kSoftmaxLanes];
        max = max < z ? z : max;
      }
      lanes[row * kSoftmaxLanes + lane] = max;
    });
    block.ForThreads([&](int thread) {
      if (thread >= kAttentionRows) return;
      float max = row_max[thread];
      for (int i = 0; i < kSoftmaxLanes; ++i) {
        const float z = lanes[thread * kSoftmaxLanes + i];
        max = max < z ? z : max;
      }
      correction[thread] = Exp2(row_max[thread] - max);
      row_max[thread] = max;
    });
    block.ForThreads([&](int thread) {
      const int row = thread / kSoftmaxLanes;
      const int lane = thread % kSoftmaxLanes;
      float sum = 0.0f;
      for (int j = 0; j < kKeysPerLane; ++j) {
        float& weight = weights[row * kBlockTokens + lane + j * kSoftmaxLanes];
        weight = Exp2(weight - row_max[row]);
        sum += weight;
      }
      lanes[row * kSoftmaxLanes + lane] = sum;
    });
    block.ForThreads([&](int thread) {
      if (thread < kAttentionRows) {
        float sum = 0.0f;
        for (int i = 0; i < kSoftmaxLanes; ++i) {
          sum += lanes[thread * kSoftmaxLanes + i];
        }
        row_sum[thread] = Fma(row_sum[thread], correction[thread], sum);
      }
      XC_UNROLL
      for (int j = 0; j < kMaxUnits; ++j) {
        const int unit = thread + j * kThreads;
        if (unit >= units) break;
        const int d = unit % head_dim;
        const int first = unit / head_dim * kRowsPerThread;
        float* acc = sums(thread).of[j];
        XC_UNROLL
        for (int r = 0; r < kRowsPerThread; ++r) {
          acc[r] = acc[r] * correction[first + r];
        }
        for (int key = 0; key < num_keys; ++key) {
          const float v = F16ToF32(v_tile[key * head_dim + d]);
          XC_UNROLL
          for (int r = 0; r < kRowsPerThread; ++r) {
            acc[r] = Fma(weights[(first + r) * kBlockTokens + key], v, acc[r]);
          }
        }
      }
    });
  }

  float* partial = args.partials + PartialAt(args, task_index, head);
  const int row_floats = PartialRowFloats(head_dim);
  block.ForThreads([&](int thread) {
    XC_UNROLL
    for (int j = 0; j < kMaxUnits; ++j) {
      const int unit = thread + j * kThreads;
      if (unit >= units) break;
      const int first = unit / head_dim * kRowsPerThread;
      XC_UNROLL
      for (int r = 0; r < kRowsPerThread; ++r) {
        partial[(first + r) * row_floats + unit % head_dim] =
            sums(thread).of[j][r];
      }
    }
    if (thread < kAttentionRows) {
      partial[thread * row_floats + head_dim] = row_max[thread];
      partial[thread * row_floats + head_dim + 1] = row_sum[thread];
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
  const int num_rows = QueryRows(args, task);
  const int row_floats = PartialRowFloats(head_dim);
  block.ForThreads([&](int thread) {
    for (int e = thread; e < num_rows * head_dim; e += kThreads) {
      const int row = e / head_dim;
      const int d = e - row * head_dim;
      float value = 0.0f, sum = 0.0f;
      float max = FloatOf(0xff800000u);
      for (int chunk = 0; chunk < task.num_chunks; ++chunk) {
        const float* from = args.partials +
                            PartialAt(args, task_index + chunk, head) +
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

#endif  // XCACHE_ENGINE_CUDA_ATTENTION_KERNELS_H_
