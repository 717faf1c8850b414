// Attention of a step on the CPU: the queries of many sequences over their K/V
// tiles, split into tasks by head, tokens and chunks of keys, so that threads
// are busy whatever the step is made of. No row's result depends on the split.
#ifndef XCACHE_ENGINE_CPU_ATTENTION_H_
#define XCACHE_ENGINE_CPU_ATTENTION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/cpu/kv.h"
#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "engine/model/model.h"

namespace xcache {

// A parallel loop costs about a microsecond, more when a worker has gone to
// sleep. Rows are prepared by the caller where there are fewer than this.
inline constexpr int64_t kMinParallelRows = 6;

// Tokens of one sequence, all in its live block.
struct AttentionItem {
  int num_tokens = 0;
  int first_position = 0;
  // The blocks of its keys, in order: the last of `live` is the live one.
  std::span<const KvBlockRef> sealed;
  std::span<const std::shared_ptr<CpuKvBlock>> live;
  const float* q = nullptr;  // [num_tokens, n_heads * head_dim], rows q_stride
  float* out = nullptr;      // the same, rows out_stride
};

class CpuAttention {
 public:
  // All arguments but `shape` must outlive it.
  CpuAttention(const HyperParams& hparams, const Kernels& kernels,
               ThreadPool& pool, const KvShape& shape, int64_t q_stride,
               int64_t out_stride);

  // The step's items. What they point to must outlive its last Run.
  void Plan(std::span<const AttentionItem> items);
  // Of layer 0, 1, ... in order.
  void Run(int layer);

 private:
  // One head's share of an item's attention: some of its tokens, over one
  // chunk of keys, or over all of them.
  struct Task {
    size_t group;     // index into the tasks' groups
    int chunk;        // -1: all chunks
    int64_t partial;  // where its partial goes, in floats; unused for -1
  };
  // Tokens of one item and head that are finished together.
  struct Group {
    AttentionArgs args;
    int64_t first_partial;
    bool chunked;
  };
  // Of the layers that attend alike.
  struct Tasks {
    int window = 0;  // 0: all keys
    std::vector<Task> tasks;
    std::vector<Group> groups;
    bool parallel = false;
  };

  // Returns how many rows a task has at most.
  int PlanTasks(std::span<const AttentionItem> items, Tasks* out);

  const HyperParams& hparams_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const KvShape shape_;
  const int64_t q_stride_, out_stride_;

  int64_t num_rows_ = 0;
  Tasks full_, sliding_;
  std::vector<const uint16_t*> k_tiles_, v_tiles_;  // of the layer at hand
  AlignedBuffer<float> partials_;
  int64_t scratch_floats_ = 0;  // of one thread
  int64_t local_floats_ = 0;    // its two partials for unchunked tasks
  AlignedBuffer<float> scratch_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_ATTENTION_H_
